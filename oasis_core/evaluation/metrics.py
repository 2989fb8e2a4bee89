"""How close a clip's frames are to the ground truth's, pixel by pixel. Higher is better."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

LARGEST_PSNR = 10 * math.log10(255**2 / 1e-9)
"""What equal frames score (138.1 dB): as if their mean squared error were 1e-9 of a level. One level in one colour of one
pixel of a 4K frame is still below it (122 dB)."""
LOW_RESOLUTION = 4
"""Factor that ``lrgt_psnr`` downscales by."""
SSIM_SIGMA = 1.5
"""Deviation of SSIM's Gaussian window in pixels, as its authors' (Wang et al., "Image Quality Assessment", 2004)."""
SSIM_BORDER = 5
"""Half of the window of 11 pixels that torchmetrics makes for that deviation."""


class FrameQuality:
    """``psnr`` (dB) and ``ssim`` of RGB frames, by torchmetrics; the mean over the frames.

    SSIM's settings are its authors': Gaussian window of 11 pixels and deviation 1.5, K1 0.01, K2 0.03, the mean over the pixels
    whose window lies inside the frame (torchmetrics alone would count the border too, mirrored), each colour by itself. In
    float32, which is about 1e-4 below float64 where a clip has large flat areas, and six times faster.
    """

    def __init__(self) -> None:
        self._psnr: list[float] = []
        self._ssim: list[float] = []

    def add(self, truth: np.ndarray, output: np.ndarray) -> None:
        """One frame of each, ``(H, W, 3)`` uint8."""
        hr, sr = (_planes(f) for f in (truth, output))
        self._psnr.append(min(LARGEST_PSNR, peak_signal_noise_ratio(sr.double(), hr.double(), data_range=1.0).item()))
        self._ssim.append(_ssim(sr, hr))

    def result(self) -> dict[str, float]:
        return {"psnr": float(np.mean(self._psnr)), "ssim": float(np.mean(self._ssim))}


class LowResolution:
    """``lrgt_psnr`` (dB): both area-downscaled by 4, then the PSNR of the clip as one.

    Tells whether the output keeps what the ground truth holds at the input's resolution, whatever detail was added to it.
    """

    def __init__(self) -> None:
        self._squares: list[float] = []

    def add(self, truth: np.ndarray, output: np.ndarray) -> None:
        """One frame of each, ``(H, W, 3)`` uint8."""
        size = truth.shape[1] // LOW_RESOLUTION, truth.shape[0] // LOW_RESOLUTION
        hr, sr = (cv2.resize(f, size, interpolation=cv2.INTER_AREA).astype(np.float64) for f in (truth, output))
        self._squares.append(float(np.square(hr - sr).mean()))

    def result(self) -> dict[str, float]:
        error = float(np.mean(self._squares))
        return {"lrgt_psnr": 10 * math.log10(255**2 / error) if error else LARGEST_PSNR}


def _planes(frame: np.ndarray) -> Tensor:
    """``(1, 3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255


def _ssim(sr: Tensor, hr: Tensor) -> float:
    _, similarity = structural_similarity_index_measure(
        sr, hr, gaussian_kernel=True, sigma=SSIM_SIGMA, data_range=1.0, return_full_image=True
    )
    assert isinstance(similarity, Tensor)
    inside = slice(SSIM_BORDER, -SSIM_BORDER)
    return similarity[..., inside, inside].double().mean().item()
