"""Pixel-unshuffle and its inverse; the causal rule for the first frame."""

from __future__ import annotations

import pytest
import torch

from oasis_core.patchify import (
    frame_count,
    latent_length,
    replicate_first,
    shuffle,
    shuffle_groups,
    unshuffle,
    unshuffle_groups,
)

FACTORS = [(4, 8, 8), (1, 8, 8), (2, 2, 4), (1, 1, 1), (3, 1, 2)]


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("groups", [0, 1, 3])
def test_shuffle_is_the_exact_inverse(factors: tuple[int, int, int], groups: int) -> None:
    ft, fh, fw = factors
    pixels = torch.randn(2, 3, 1 + ft * groups, 2 * fh, 3 * fw)
    cells = unshuffle(pixels, factors)
    assert cells.shape == (2, 3 * ft * fh * fw, groups + 1, 2, 3)
    assert torch.equal(shuffle(cells, factors), pixels)


@pytest.mark.parametrize("factors", FACTORS)
def test_groups_are_the_exact_inverse(factors: tuple[int, int, int]) -> None:
    ft, fh, fw = factors
    pixels = torch.randn(1, 3, 2 * ft, 3 * fh, fw)
    cells = unshuffle_groups(pixels, factors)
    assert cells.shape == (1, 3 * ft * fh * fw, 2, 3, 1)
    assert torch.equal(shuffle_groups(cells, factors), pixels)


def test_channels_lie_in_the_order_colour_frame_row_column() -> None:
    pixels = torch.randn(1, 3, 4, 6, 8)
    cells = unshuffle_groups(pixels, (2, 3, 4))
    channel = ((1 * 2 + 1) * 3 + 2) * 4 + 3  # colour 1, frame 1, row 2, column 3 of the cell
    assert torch.equal(cells[0, channel, 1, 0, 1], pixels[0, 1, 1 * 2 + 1, 0 * 3 + 2, 1 * 4 + 3])


def test_without_time_it_is_torch_s_pixel_unshuffle_of_each_frame() -> None:
    pixels = torch.randn(1, 3, 5, 16, 24)
    expected = torch.nn.functional.pixel_unshuffle(pixels[0].transpose(0, 1), 8).transpose(0, 1)[None]
    assert torch.equal(unshuffle(pixels, (1, 8, 8)), expected)


def test_the_first_frame_fills_a_group() -> None:
    pixels = torch.randn(1, 3, 5, 8, 8)
    whole = replicate_first(pixels, 4)
    assert whole.shape[2] == 8
    assert torch.equal(whole[:, :, :4], pixels[:, :, :1].expand(-1, -1, 4, -1, -1))
    assert torch.equal(whole[:, :, 3:], pixels)
    assert torch.equal(unshuffle(pixels, (4, 8, 8)), unshuffle_groups(whole, (4, 8, 8)))


def test_each_latent_frame_depends_on_its_own_group_alone() -> None:
    """What streaming builds on: group by group gives the whole."""
    pixels = torch.randn(1, 3, 9, 8, 8)
    parts = [unshuffle(pixels[:, :, :1], (4, 4, 4))]
    parts += [unshuffle_groups(pixels[:, :, i : i + 4], (4, 4, 4)) for i in (1, 5)]
    assert torch.equal(torch.cat(parts, dim=2), unshuffle(pixels, (4, 4, 4)))


def test_lengths() -> None:
    for factor in (1, 2, 4, 8):
        for frames in range(1, 40):
            latents = latent_length(frames, factor)
            padded = frame_count(latents, factor)
            assert frames <= padded < frames + factor
            assert latent_length(padded, factor) == latents
    with pytest.raises(ValueError, match="0 frames"):
        latent_length(0, 4)


@pytest.mark.parametrize(("frames", "fits"), [(2, 5), (4, 5), (7, 9), (16, 17)])
def test_other_lengths_are_refused_naming_the_next_that_fits(frames: int, fits: int) -> None:
    with pytest.raises(ValueError, match=rf"clip has {frames} frames; .* up to {fits}$"):
        unshuffle(torch.zeros(1, 3, frames, 8, 8), (4, 8, 8))


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 12, 8\).*multiples of \(4, 8, 8\)"):
        unshuffle(torch.zeros(1, 3, 5, 12, 8), (4, 8, 8))
    with pytest.raises(ValueError, match=r"\(1, 10, 1, 2, 2\); channels must be a multiple of 16"):
        shuffle(torch.zeros(1, 10, 1, 2, 2), (4, 2, 2))
