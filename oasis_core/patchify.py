"""Pixel-unshuffle in space and time, and its inverse (paper section 3.1; the temporal rule is the causal VAE's).

With a temporal factor f, T = 1 + f * k frames make k + 1 latent frames: the first frame stands for a whole group.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def latent_length(frames: int, factor: int) -> int:
    """Latent frames that hold ``frames`` frames; a last group that is not full counts."""
    if frames < 1:
        raise ValueError(f"clip has {frames} frames; it needs at least 1")
    return 1 + -(-(frames - 1) // factor)


def frame_count(latents: int, factor: int) -> int:
    """Frames in ``latents`` full latent frames: 1 + factor * (latents - 1)."""
    return 1 + factor * (latents - 1)


def replicate_first(pixels: Tensor, factor: int) -> Tensor:
    """Repeat the first frame of ``(B, C, T, H, W)`` until it fills a group of ``factor``."""
    return torch.cat([pixels[:, :, :1].expand(-1, -1, factor - 1, -1, -1), pixels], dim=2) if factor > 1 else pixels


def unshuffle_groups(pixels: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """``(B, C, t*ft, h*fh, w*fw)`` -> ``(B, C*ft*fh*fw, t, h, w)``: whole groups, no frame counts double.

    Raises:
        ValueError: a side that its factor does not divide.
    """
    _check_cells(pixels, factors)
    ft, fh, fw = factors
    return rearrange(pixels, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=ft, q=fh, r=fw)


def unshuffle_groups_last(pixels: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """The same with the channels last, ``(B, t, h, w, C*ft*fh*fw)``, as linear layers take them: one copy, not two."""
    _check_cells(pixels, factors)
    ft, fh, fw = factors
    return rearrange(pixels, "b c (t p) (h q) (w r) -> b t h w (c p q r)", p=ft, q=fh, r=fw)


def _check_cells(pixels: Tensor, factors: tuple[int, int, int]) -> None:
    if any(size % f for size, f in zip(pixels.shape[2:], factors, strict=True)):
        raise ValueError(f"pixels are {tuple(pixels.shape)}; frames, height and width must be multiples of {factors}")


def shuffle_groups(cells: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """Inverse of ``unshuffle_groups``. Raises ValueError where the channels do not hold whole cells."""
    ft, fh, fw = factors
    if cells.shape[1] % (ft * fh * fw):
        raise ValueError(f"cells are {tuple(cells.shape)}; channels must be a multiple of {ft * fh * fw} {factors}")
    return rearrange(cells, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=ft, q=fh, r=fw)


def unshuffle(pixels: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """A clip from its first frame on: ``(B, C, 1 + ft*k, H, W)`` -> ``(B, C*ft*fh*fw, k + 1, h, w)``.

    Raises:
        ValueError: a length or side that does not fit; the message names the next length that does.
    """
    frames, ft = pixels.shape[2], factors[0]
    if (frames - 1) % ft:
        fits = frame_count(latent_length(frames, ft), ft)
        raise ValueError(f"clip has {frames} frames; it must have 1 + {ft} * k: repeat the last frame up to {fits}")
    return unshuffle_groups(replicate_first(pixels, ft), factors)


def shuffle(cells: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """Inverse of ``unshuffle``: the first frame's copies are dropped."""
    return shuffle_groups(cells, factors)[:, :, factors[0] - 1 :]
