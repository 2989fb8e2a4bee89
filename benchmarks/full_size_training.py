"""The full size trains: some steps of the 1.3-billion-parameter shape on random weights, their time, memory and loss.

    python benchmarks/full_size_training.py DATA             # a CUDA device, every weight and then adapters of rank 64
    python benchmarks/full_size_training.py DATA --small     # a CPU, small sizes: does it run?

``DATA`` as for ``oasis train``. Random weights stand in for Wan's, in the transformer and in the (frozen) decoder, so the
loss says only that gradients reach what they should. Writes ``benchmarks/results/full_size_training_DATE.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from clock import GIB, now
from full_size import SMALL_SIZE
from random_models import FULL, fill

from oasis_core.model import OasisModel
from oasis_core.model.decoders import WanDecoder
from oasis_core.model.vae_config import WanDecoderConfig
from oasis_core.training import trainer
from oasis_core.training.config import LossWeights, StageConfig, TrainConfig
from oasis_core.training.feed import Feed
from oasis_core.training.parallel import Group
from oasis_core.training.state import TrainState, learning_rate
from oasis_core.training.trainer import Trainer

LOG_EVERY = 10
STAGE = StageConfig("fine-tune", 50, batch=1, frames=9, size=512, lr=5e-5, lr_end=5e-5, warmup=5,
                    loss=LossWeights(low=0.5, motion=0.5))  # fmt: skip


def build(config: TrainConfig, device: torch.device) -> OasisModel:
    """Random weights; a decoder whose output stays about as large as pixels are."""
    torch.manual_seed(config.seed)
    with torch.device(device):
        model = OasisModel(config.model)
        model.init_weights()
    assert isinstance(config.model.decoder, WanDecoderConfig)
    with torch.device("meta"):
        decoder = WanDecoder(config.model.decoder)
    fill(decoder, device, torch.float32)
    decoder.conv_out.weight.data *= 0.2
    model.attach_decoder(decoder)
    return model


def run(config: TrainConfig, device: torch.device, workers: int) -> dict[str, object]:
    """Train for the config's steps: milliseconds a step, peak memory in GiB, losses."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    Path(config.out).mkdir(parents=True)
    state = TrainState(config, build(config, device), None, device=device)
    work = Trainer(config, state, device, Group())
    times = []
    with Feed(config, device, start=0, stop=config.steps, workers=workers, data_device=torch.device("cpu")) as feed:
        for batch in feed:
            if work.stage is None:
                work.enter(config.stages[0], batch)
            began = now(device)
            work.step(batch, learning_rate(config.stages[0], state.step), state.step)
            times.append(now(device) - began)
    lines = [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    record: dict[str, object] = {
        "trained_parameters": sum(p.numel() for p in state.trained),
        "ms_a_step": round(1000 * sorted(times)[len(times) // 2]),
        "pixel_loss": {line["step"]: line["pixel"] for line in lines},
    }
    if device.type == "cuda":
        record["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 2)
    print(record, flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--small", action="store_true", help="small sizes on the CPU: does it run?")
    parser.add_argument("--steps", type=int, default=STAGE.steps)
    parser.add_argument("--workers", type=int, default=4, help="processes that make the data (default 4)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --small runs on the CPU")
    device = torch.device("cpu") if args.small else torch.device("cuda", torch.cuda.current_device())
    stage = replace(STAGE, steps=args.steps)
    if args.small:
        stage = replace(stage, size=64, frames=5, lr=1e-2, lr_end=1e-2)
    trainer.LOG_EVERY = LOG_EVERY
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for rank in (0, 64):
            out = Path(folder) / str(rank)
            model = SMALL_SIZE if args.small else FULL
            config = TrainConfig(
                model, (stage,), data=str(args.data), out=str(out), lora_rank=rank, checkpoint_blocks=True,
                decoder="random",
            )  # fmt: skip
            began = time.monotonic()
            results[f"rank {rank}" if rank else "every weight"] = run(config, device, args.workers)
            print(f"{time.monotonic() - began:.0f} s in all", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {
        "date": date.today().isoformat(), "commit": commit, "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "model": model.name, "batch": stage.batch, "frames": stage.frames, "size": stage.size, "steps": stage.steps,
        "results": results,
    }  # fmt: skip
    small = "_small" if args.small else ""
    path = args.json or Path(__file__).parent / "results" / f"full_size_training{small}_{record['date']}.json"
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
