"""The Wan 2.1 VAE's decoder: same numbers as Diffusers' class, streamed, in tiles, from files of every naming."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from oasis_core.checkpoints.decoder import ENCODER, fill, load_decoder, shapes_of
from oasis_core.checkpoints.match import Naming
from oasis_core.checkpoints.vae_names import DIFFUSERS, ORIGINAL
from oasis_core.memory import decoder_traffic
from oasis_core.model.decoders import DecodePlan, DecoderState, WanDecoder, streaming
from oasis_core.model.vae_config import LATENT_MEAN, LATENT_STD, WanDecoderConfig

TOLERANCE = 1e-4
"""Against other code: largest error as a share of the output's standard deviation (fp32 rounding)."""
STREAMED = 1e-5
"""Against ourselves, other shapes through the same convolutions."""
SMALL = WanDecoderConfig(width=8, latent_mean=(0.1, 0.2, -0.3, 0.5), latent_std=(1.0, 2.0, 0.5, 1.5))


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep the size of what passes through; gains around 0.8."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        spread = shape[0] ** 0.5 / torch.Size(shape).numel() ** 0.5 if len(shape) > 1 else 0.2
        state[name] = torch.randn(shape, generator=generator) * spread + (0.8 if name.endswith("gamma") else 0)
    return state


def random_decoder(config: WanDecoderConfig, seed: int = 0) -> WanDecoder:
    decoder = WanDecoder(config)
    fill(decoder, random_state(shapes_of(decoder), seed))
    return decoder


def latent(config: WanDecoderConfig, t: int, h: int, w: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, config.latent_channels, t, h, w, generator=torch.Generator().manual_seed(t * h + w))


def denormalised(z: Tensor, config: WanDecoderConfig) -> Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latent_mean, config.latent_std))
    return z * std + mean


def diffusers_vae(decoder: WanDecoder):  # type: ignore[no-untyped-def]
    """Diffusers' class with our decoder's weights."""
    diffusers = pytest.importorskip("diffusers")
    c = decoder.config
    vae = diffusers.AutoencoderKLWan(
        base_dim=c.width, z_dim=c.latent_channels, latents_mean=list(c.latent_mean), latents_std=list(c.latent_std)
    ).eval()
    theirs, naming = vae.state_dict(), Naming("Diffusers", DIFFUSERS)
    for name, tensor in decoder.state_dict().items():
        theirs[naming.theirs(name)] = tensor.reshape(theirs[naming.theirs(name)].shape)
    vae.load_state_dict(theirs)
    return vae


@pytest.mark.parametrize(("t", "h", "w", "batch"), [(1, 2, 3, 1), (2, 4, 3, 2), (5, 6, 5, 1), (9, 3, 4, 1)])
@torch.inference_mode()
def test_equals_diffusers(t: int, h: int, w: int, batch: int) -> None:
    decoder = random_decoder(SMALL)
    z = latent(SMALL, t, h, w, batch)
    theirs = diffusers_vae(decoder).decode(denormalised(z, SMALL), return_dict=False)[0]
    ours = decoder(z)
    assert ours.shape == theirs.shape == (batch, 3, 4 * t - 3, 8 * h, 8 * w)
    assert theirs.std() > 0.1
    assert (theirs.abs() == 1).float().mean() < 0.5  # theirs is clamped
    assert (ours.clamp(-1, 1) - theirs).abs().max() < TOLERANCE * theirs.std()


@pytest.mark.slow
@torch.inference_mode()
def test_equals_diffusers_at_true_width() -> None:
    config = WanDecoderConfig()
    decoder = random_decoder(config)
    z = latent(config, 3, 4, 4)
    theirs = diffusers_vae(decoder).decode(denormalised(z, config), return_dict=False)[0]
    assert theirs.std() > 0.1
    assert (decoder(z).clamp(-1, 1) - theirs).abs().max() < TOLERANCE * theirs.std()


def test_published_means_and_deviations() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        config = diffusers.AutoencoderKLWan(base_dim=2).config
    assert (tuple(config.latents_mean), tuple(config.latents_std)) == (LATENT_MEAN, LATENT_STD)


def splits(total: int) -> list[tuple[int, ...]]:
    """Every way to write ``total`` as a sequence of whole numbers."""
    cuts = [c for n in range(total) for c in itertools.combinations(range(1, total), n)]
    return [tuple(b - a for a, b in itertools.pairwise((0, *c, total))) for c in cuts]


@pytest.mark.slow
@torch.inference_mode()
def test_streamed_equals_whole_for_every_split_of_nine_latent_frames() -> None:
    config = replace(SMALL, width=16)  # norms over fewer channels magnify rounding
    decoder, z = random_decoder(config), latent(config, 9, 2, 2)
    whole = decoder(z)
    every = splits(9)
    assert len(every) == 2**8
    for split in every:
        state = DecoderState()
        pieces = [decoder(piece, state) for piece in z.split(split, dim=2)]
        assert [p.shape[2] for p in pieces] == [4 * n - 3 * (not i) for i, n in enumerate(split)]
        assert (torch.cat(pieces, dim=2) - whole).abs().max() < STREAMED * whole.std(), split


@torch.inference_mode()
def test_a_state_is_of_one_size() -> None:
    decoder, state = random_decoder(SMALL), DecoderState()
    decoder(latent(SMALL, 1, 2, 2), state)
    with pytest.raises(ValueError, match="begin a new state"):
        decoder(latent(SMALL, 1, 2, 3), state)
    with pytest.raises(ValueError, match="expected \\(B, 4, t, h, w\\)"):
        decoder(torch.zeros(1, 5, 1, 2, 2))


@pytest.mark.parametrize("frames", [0, 1, 3])
@pytest.mark.parametrize("tile", [20, 32, 47])
@torch.inference_mode()
def test_tiles_are_exact(tile: int, frames: int) -> None:
    decoder, z = random_decoder(SMALL), latent(SMALL, 3, 11, 8)
    whole = decoder(z)
    decoder.plan = DecodePlan(tile, frames=frames, keep_on=torch.device("cpu"))
    state = DecoderState()
    tiled = torch.cat([decoder(piece, state) for piece in z.split((2, 1), dim=2)], dim=2)
    assert (tiled - whole).abs().max() < STREAMED * whole.std()


@pytest.mark.parametrize(
    ("tile", "latents", "frames", "resident"), [(24, 1, 4, 0), (32, 2, 4, 2), (32, 3, 2, 0), (0, 2, 4, 0)]
)
@torch.inference_mode()
def test_tiles_in_turn_are_exact_however_latent_frames_come(
    tile: int, latents: int, frames: int, resident: int
) -> None:
    decoder, z = random_decoder(SMALL), latent(SMALL, 5, 5, 4)
    whole = decoder(z)
    decoder.plan = DecodePlan(
        tile, frames=frames, keep_on=torch.device("cpu"), latents=latents, turn=4, resident=resident
    )
    for split in ((5,), (2, 3), (1, 4)):
        state = DecoderState()
        tiled = torch.cat([decoder(piece, state) for piece in z.split(split, dim=2)], dim=2)
        assert (tiled - whole).abs().max() < STREAMED * whole.std(), split
        assert not any(held.inputs for held in state.waiting.values())  # bounded by what one call brings


@pytest.mark.parametrize(("turn", "resident"), [(0, 0), (4, 0), (4, 3)])
@torch.inference_mode()
def test_what_crosses_between_devices_is_predicted(turn: int, resident: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a stream: a past comes and goes once a turn, not once a call."""
    count, real = 0, streaming.moved

    def moved(x: Tensor, *rest: Any) -> Tensor:
        nonlocal count
        count += x.nbytes
        return real(x, *rest)

    monkeypatch.setattr(streaming, "moved", moved)
    decoder, z = random_decoder(SMALL), latent(SMALL, 6, 8, 12)
    decoder.plan = DecodePlan(48, frames=4, keep_on=torch.device("cpu"), turn=turn, resident=resident)
    state = DecoderState()
    decoder(z[:, :, :2], state)  # the first latent frame leaves no past where frames become two
    count = 0
    for piece in z[:, :, 2:].split(turn or 1, dim=2):
        decoder(piece, state)
    assert count == pytest.approx(decoder_traffic(SMALL, 64, 96, 4, decoder.plan, 4), rel=0.01)
    once_a_call = decoder_traffic(SMALL, 64, 96, 4, replace(decoder.plan, turn=0, resident=0), 4)
    assert (count < 0.45 * once_a_call) == (turn > 0)


@torch.inference_mode()
def test_a_poll_between_tiles_ends_the_work() -> None:
    decoder, polls = random_decoder(SMALL), 0
    decoder.plan = DecodePlan(32, keep_on=torch.device("cpu"), turn=3)

    def poll() -> None:
        nonlocal polls
        polls += 1
        if polls == 6:  # after three latent frames at the cut, amid the tiles
            raise InterruptedError

    with pytest.raises(InterruptedError):
        decoder(latent(SMALL, 3, 8, 8), None, poll)


def seam_error(decoder: WanDecoder, z: Tensor, tile: int, halo: int) -> Tensor:
    """Largest error of each pixel column, by its distance from the nearest seam between two tiles side by side."""
    decoder.plan = DecodePlan()
    whole = decoder(z)
    decoder.plan = DecodePlan(tile, halo)
    error = (decoder(z) - whole).abs().amax((0, 1, 2, 3)) / whole.std()
    distance = torch.tensor([min(abs(x - s) for s in range(tile, len(error), tile)) for x in range(len(error))])
    return torch.stack([error[distance == d].max() for d in range(tile // 2)])


@torch.inference_mode()
def test_smaller_halos_err_at_the_seam_only() -> None:
    """In fp64, so that what is not exact shows: the reach of the convolutions is 22 pixels."""
    decoder = random_decoder(SMALL).double()
    z = latent(SMALL, 2, 3, 16).double()
    errors = {halo: seam_error(decoder, z, 64, halo) for halo in (0, 8, 16, 20, 24)}
    assert errors[24].max() < 1e-9
    for halo in (0, 8, 16, 20):
        assert errors[halo][0] > 1e-9  # not exact at the seam,
        assert errors[halo][22 - halo + 1 :].max() < 1e-9  # exact where the cut is beyond reach
    firsts = [float(errors[halo][0]) for halo in (0, 8, 16, 20)]
    assert firsts == sorted(firsts, reverse=True)


@torch.inference_mode()
def test_folded_upsampling_gives_the_same() -> None:
    decoder, z = random_decoder(SMALL).double(), latent(SMALL, 3, 5, 4).double()
    whole = decoder(z)
    decoder.fold()
    assert (decoder(z) - whole).abs().max() < 1e-10 * whole.std()
    decoder.plan = DecodePlan(tile=20, frames=1)
    assert (decoder(z) - whole).abs().max() < 1e-10 * whole.std()


@torch.inference_mode()
def test_in_bf16_folding_costs_no_more_than_bf16_does() -> None:
    exact, z = random_decoder(SMALL), latent(SMALL, 3, 5, 4)
    truth, errors = exact(z), []
    for folded in (False, True):
        decoder = random_decoder(SMALL).bfloat16()
        if folded:
            decoder.fold()
        errors.append(float((decoder(z).float() - truth).abs().mean()))
    assert errors[1] < 1.2 * errors[0]


def test_gradients_flow_through_a_frozen_decoder() -> None:
    decoder, z = random_decoder(SMALL), latent(SMALL, 2, 2, 2).requires_grad_()
    out = decoder(z)
    with torch.inference_mode():
        assert (decoder(z.detach()) - out).abs().max() < STREAMED * out.std()
    out.square().mean().backward()
    assert z.grad is not None
    assert z.grad.abs().min() > 0


def as_file(decoder: WanDecoder, table: dict[str, str], prefix: str) -> dict[str, Tensor]:
    """Under another project's names and shapes, with an encoder beside it."""
    naming = Naming("", table)
    state = {}
    for name, tensor in decoder.state_dict().items():
        theirs = naming.theirs(name)
        if name.endswith("gamma"):
            tensor = tensor.reshape(-1, *[1] * (2 if ".1.norm." in name or "attentions" in theirs else 3))
        elif name.startswith("post_quant.w") or "shortcut.w" in name:
            tensor = tensor.reshape(*tensor.shape, 1, 1, 1)
        elif name.startswith("mid.1.") and tensor.ndim == 2:
            tensor = tensor.reshape(*tensor.shape, 1, 1)
        state[prefix + theirs] = tensor.contiguous()
    return {**state, **{f"{prefix}{start}weight": torch.zeros(2) for start in ENCODER}}


@pytest.mark.parametrize(
    ("table", "prefix"),
    [(ORIGINAL, ""), (ORIGINAL, "first_stage_model."), (ORIGINAL, "vae."), (DIFFUSERS, "")],
    ids=["wan", "comfyui", "vae", "diffusers"],
)
@torch.inference_mode()
def test_loads_every_naming(tmp_path: Path, table: dict[str, str], prefix: str) -> None:
    decoder, z = random_decoder(SMALL), latent(SMALL, 2, 3, 2)
    save_file(as_file(decoder, table, prefix), tmp_path / "vae.safetensors")
    loaded = load_decoder(tmp_path / "vae.safetensors", config=SMALL)
    assert torch.equal(loaded(z), decoder(z))
    torch.save(as_file(decoder, table, prefix), tmp_path / "vae.pth")
    assert torch.equal(load_decoder(tmp_path / "vae.pth", config=SMALL)(z), decoder(z))


def test_the_maps_cover_diffusers_and_name_wan_alike() -> None:
    decoder = random_decoder(SMALL)
    theirs = {n for n in diffusers_vae(decoder).state_dict() if not n.startswith(ENCODER)}
    assert theirs == {Naming("", DIFFUSERS).theirs(n) for n in decoder.state_dict()}
    original = [Naming("", ORIGINAL).theirs(n) for n in decoder.state_dict()]
    assert len(set(original)) == len(original)


def test_one_error_lists_every_key_that_does_not_fit(tmp_path: Path) -> None:
    state = as_file(random_decoder(SMALL), ORIGINAL, "")
    del state["decoder.head.2.bias"]
    state["decoder.middle.0.residual.2.bias"] = torch.zeros(5)
    state["decoder.more"] = torch.zeros(1)
    path = tmp_path / "vae.safetensors"
    save_file(state, path)
    with pytest.raises(ValueError, match="missing decoder.head.2.bias") as e:
        load_decoder(path, config=SMALL)
    assert "unexpected decoder.more" in str(e.value)
    assert "decoder.middle.0.residual.2.bias is (5,) instead of (32,)" in str(e.value)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="none of the tensors"):
        load_decoder(path)
    with pytest.raises(FileNotFoundError):
        load_decoder(tmp_path / "none.safetensors")
    (tmp_path / "bad.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a readable file of tensors"):
        load_decoder(tmp_path / "bad.pth")


@pytest.mark.parametrize("changes", [{"width": 0}, {"latent_mean": ()}, {"latent_std": (1.0,)}, {"kind": "pixel"}])
def test_config_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="decoder"):
        WanDecoderConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"tile": -1}, {"halo": -4}, {"frames": -1}])
def test_plan_refuses(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="it must be 0 or more"):
        DecodePlan(**changes)  # type: ignore[arg-type]
