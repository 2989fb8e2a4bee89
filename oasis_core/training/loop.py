"""A training run, stage by stage: batch -> restore -> losses -> step (paper section 3.3; recipe in docs/training.md)."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import time
from pathlib import Path

import torch
from einops import rearrange

from ..checkpoints import load_checkpoint, save_checkpoint
from ..checkpoints.decoder import load_decoder
from ..checkpoints.metadata import Metadata
from ..model import OasisModel
from ..model.decoders import WanDecoder
from ..model.vae_config import WanDecoderConfig
from ..routing.assignment import assign_by_shares
from ..routing.calibrated import CalibratedRouting, cost_on, kl_table
from ..routing.calibration import measure
from ..routing.spec import HeadPattern, RoutingSpec
from .config import TrainConfig
from .deadline import Deadline
from .feed import Batch, Feed
from .parallel import Group, join, leave
from .plot import plot_log
from .state import TrainState, learning_rate
from .trainer import Trainer, upsample
from .validation import Validation

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    device: torch.device,
    seconds: float | None = None,
    workers: int = 0,
    fuse: bool = False,
    data_device: torch.device | None = None,
    anneal: float = 0.0,
) -> Path:
    """Run, or go on with, a training run in ``config.out``; under torchrun on all its processes' devices.

    Args:
        seconds: stop (with a saved state) after that much time; None: run to the end.
        workers: processes that make the data, for each training process; 0: make it in this one.
        data_device: where the data are made; None: on ``device`` (``Feed``).
        anneal: the last share of ``seconds`` in which the learning rate falls to nothing (``Deadline``).
        fuse: compile everything but the attention (costs a minute, then half a step's time on a GPU).

    Returns:
        The checkpoint with the averaged weights as they are now.
    """
    began = time.monotonic()
    group, device = join(device)
    try:
        return _run(config, device, group, Deadline(group, began, seconds, anneal), workers, fuse, data_device)
    finally:
        leave()


def _run(
    config: TrainConfig,
    device: torch.device,
    group: Group,
    deadline: Deadline,
    workers: int,
    fuse: bool,
    data_device: torch.device | None,
) -> Path:
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True  # shapes are fixed within a stage
    torch.set_float32_matmul_precision("high")
    state = TrainState(config, *_start(config), device=device)
    if (out / "state.pt").is_file():
        state.load(out / "state.pt", device)
        log.info("going on from step %d", state.step)
    trainer = Trainer(config, state, device, group, fuse)
    check = Validation(config, device) if config.validation and group.leads else None
    span = {"start": state.step, "stop": config.steps}
    with Feed(config, device, **span, workers=workers, rank=group.rank, data_device=data_device) as feed:
        for batch in feed:
            stage, offset = config.stage_at(state.step)
            if stage is not trainer.stage:
                if trainer.stage is not None and group.leads:
                    write_weights(config, state, weights_path(config, trainer.stage.name))
                if stage.routed and not state.calibrated:
                    calibrate(config, state, batch, group)
                with feed.quiet:
                    trainer.enter(stage, batch)
            trainer.step(batch, deadline.ease * learning_rate(stage, offset), offset)
            if state.step % config.save_every == 0 and group.leads:
                state.save(out / "state.pt")
                write_weights(config, state, weights_path(config))
                save_preview(out / f"preview_{state.step:06d}.png", state, batch)
                save_plot(out)
                if check is not None:
                    check.write(out, state)
            if deadline.over(state.step):
                break
    if group.leads:
        state.save(out / "state.pt")
        write_weights(config, state, weights_path(config))
        save_plot(out)
        if check is not None:
            check.write(out, state)
    group.wait()
    return weights_path(config)


def _start(config: TrainConfig) -> tuple[OasisModel, RoutingSpec | None]:
    """Random weights, or those of ``config.start_from`` with their routing; and the decoder that was given."""
    model = OasisModel(config.model)
    if isinstance(config.model.decoder, WanDecoderConfig):
        if not config.decoder:
            raise ValueError(
                f"model {config.model.name!r} has no decoder of its own; name a Wan 2.1 VAE: decoder = FILE"
            )
        decoder = load_decoder(Path(config.decoder), config=config.model.decoder)
        if not isinstance(decoder, WanDecoder):
            raise ValueError(
                f"decoder {config.decoder} is a tiny one, which takes one clip at a time; give the Wan 2.1 VAE"
            )
        model.attach_decoder(decoder)
    if not config.start_from:
        model.init_weights()
        return model, None
    loaded = load_checkpoint(Path(config.start_from))
    asked = config.model
    free = {"faithful_timestep": asked.faithful_timestep, "fidelity_curve": asked.fidelity_curve}
    if dataclasses.replace(loaded.config, name=asked.name, **free) != asked:  # type: ignore[arg-type]
        raise ValueError(f"{config.start_from} is of another model config than this run's [model]")
    model.load_state_dict({**model.state_dict(), **loaded.model.state_dict()})
    return model, loaded.routing


def calibrate(config: TrainConfig, state: TrainState, batch: Batch, group: Group) -> None:
    """Specialise the heads: KL of localising each, on a batch of training clips, then the budget's assignment.

    The leading process measures; all take its routing.
    """
    if group.leads:
        clips = upsample(batch.lr, batch.hr.shape[-1]).split(1)
        found = measure(state.averaged_model(), clips, config.routing.window)
        state.routing = assign_by_shares(found, config.routing.global_share, config.routing.intra_frame_share)
        shares = {"global": config.routing.global_share, "intra-frame": config.routing.intra_frame_share}
        about = {
            "model": config.model.name,
            "clips": [{"name": f"training clip {i}", "tokens": [g.t, g.h, g.w]} for i, g in enumerate(found.grids)],
            "rule": {"shares": shares},
            "attention_cost": cost_on(state.routing, found),
        }
        record = CalibratedRouting(state.routing, kl_table(found), about)
        (Path(config.out) / "routing.json").write_text(record.to_json(), encoding="utf-8")
        for pattern in HeadPattern:
            log.info("routing: %.1f %% of heads %s", 100 * state.routing.share(pattern), pattern.value)
    state.routing = RoutingSpec.from_json(group.share(state.routing.to_json()))
    state.calibrated = True


@torch.no_grad()
def save_preview(path: Path, state: TrainState, batch: Batch, clips: int = 4) -> None:
    """PNG: upsampled input | averaged model's output | ground truth, middle frame of some clips."""
    from PIL import Image

    model, middle = state.averaged_model(), batch.hr.shape[2] // 2
    pixels = upsample(batch.lr[:clips], batch.hr.shape[-1])
    sr = (model(pixels, state.routing) + 1) / 2
    rows = torch.stack([(pixels + 1) / 2, sr, batch.hr[:clips].float()])[:, :, :, middle]
    picture = rearrange(rows, "k b c h w -> (b h) (k w) c").clamp(0, 1).mul(255).round().byte().cpu().numpy()
    Image.fromarray(picture).save(path)


def save_plot(out: Path) -> None:
    """``log.png``, where there is a line to draw and matplotlib to draw it with."""
    if not (out / "log.jsonl").is_file():
        return
    if importlib.util.find_spec("matplotlib") is None:
        log.info("no log.png: it needs matplotlib (pip install matplotlib)")
        return
    plot_log(out / "log.jsonl", out / "log.png")


def weights_path(config: TrainConfig, stage: str = "") -> Path:
    """Where the averaged weights go: ``<out>/<model name>.safetensors``, at the end of a stage ``..._<stage>.safetensors``."""
    return Path(config.out) / f"{config.model.name}{'_' * bool(stage)}{stage}.safetensors"


def write_weights(config: TrainConfig, state: TrainState, path: Path) -> None:
    """Averaged weights in fp16 as an OASIS checkpoint."""
    notes = f"trained by `oasis train`: {state.step} of {config.steps} steps, seed {config.seed}"
    metadata = Metadata(config.model, state.routing, config.licence, notes)
    save_checkpoint(path, state.averaged_model(decoder=False), metadata, torch.float16)
