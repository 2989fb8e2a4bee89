"""The tiny decoder: streamed equals whole, in pieces equals at once, from files; parity with ComfyUI is in tests/comfy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from oasis_core.checkpoints.decoder import decoder_of, fill, load_decoder, shapes_of
from oasis_core.model.decoders import DecodePlan, DecoderState, TaehvDecoder
from oasis_core.model.vae_config import LATENT_MEAN, LATENT_STD, TaehvConfig

CLOSE = 1e-5


@pytest.fixture
def decoder() -> TaehvDecoder:
    decoder = TaehvDecoder(TaehvConfig(width=8))
    generator = torch.Generator().manual_seed(0)
    spread = {n: (s[0] / torch.Size(s).numel()) ** 0.5 if len(s) > 1 else 0.2 for n, s in shapes_of(decoder).items()}
    fill(decoder, {n: torch.randn(s, generator=generator) * spread[n] for n, s in shapes_of(decoder).items()})
    return decoder


def latent(t: int) -> Tensor:
    return torch.randn(1, 16, t, 3, 4, generator=torch.Generator().manual_seed(t))


@pytest.mark.parametrize("split", [(1, 4), (2, 3), (1, 1, 1, 1, 1), (3, 1, 1)])
@pytest.mark.parametrize("frames", [0, 1, 3])
@torch.inference_mode()
def test_streamed_equals_whole(decoder: TaehvDecoder, split: tuple[int, ...], frames: int) -> None:
    z, state = latent(5), DecoderState()
    whole = decoder(z)
    assert whole.shape == (1, 3, 17, 24, 32)
    assert whole.std() > 0.1
    decoder.plan = DecodePlan(frames=frames)
    pieces = torch.cat([decoder(piece, state) for piece in z.split(split, dim=2)], dim=2)
    assert (pieces - whole).abs().max() < CLOSE * whole.std()


def as_file(decoder: TaehvDecoder) -> dict[str, Tensor]:
    state = {n.replace("layers.", "decoder."): t.contiguous() for n, t in decoder.state_dict().items()}
    return {**state, "encoder.0.weight": torch.zeros(1)}


@torch.inference_mode()
def test_loads_from_files(decoder: TaehvDecoder, tmp_path: Path) -> None:
    z, path = latent(2), tmp_path / "taew2_1.safetensors"
    expected = decoder(z)
    save_file(as_file(decoder), path)
    assert torch.equal(load_decoder(path)(z), expected)
    assert torch.equal(decoder_of(as_file(decoder))(z), expected)
    more = as_file(decoder)  # a file whose first growing layer makes two frames: the last one counts
    more["decoder.7.conv.weight"] = torch.cat(
        [torch.ones_like(more["decoder.7.conv.weight"]), more["decoder.7.conv.weight"]]
    )
    save_file(more, path)
    assert torch.equal(load_decoder(path)(z), expected)
    path = tmp_path / "lighttaew2_1.safetensors"  # takes latents in the VAE's scale
    save_file(as_file(decoder), path)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (LATENT_MEAN, LATENT_STD))
    assert (load_decoder(path)((z - mean) / std) - expected).abs().max() < CLOSE


def test_refuses(decoder: TaehvDecoder, tmp_path: Path) -> None:
    state = as_file(decoder)
    save_file({**state, "decoder.1.weight": torch.zeros(32, 48, 3, 3)}, tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="for 48 latent channels"):
        load_decoder(tmp_path / "t.safetensors")
    del state["decoder.9.conv.0.bias"]
    save_file(state, tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match=r"missing decoder.9.conv.0.bias"):
        load_decoder(tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="expected \\(1, 16, t, h, w\\)"):
        decoder(torch.zeros(2, 16, 1, 2, 2))
    stream = DecoderState()
    decoder(latent(1), stream)
    with pytest.raises(ValueError, match="begin a new state"):
        decoder(torch.zeros(1, 16, 1, 2, 2), stream)
