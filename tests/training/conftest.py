"""A training set of a few small pictures and clips, made on the spot."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

CLIPS = 2
STILLS = 3
LENGTH = 12


def textured(height: int, width: int, seed: int) -> np.ndarray:
    """A picture ``(H, W, 3)`` uint8 with smooth shading, sharp edges and fine texture, as photographs have."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 255, (5, 6, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(image, centre, int(rng.integers(5, 40)), rng.integers(0, 255, 3).tolist(), -1, cv2.LINE_AA)
    grain = rng.normal(0, 12, image.shape)
    return np.clip(image + cv2.GaussianBlur(grain, (0, 0), 0.8), 0, 255).astype(np.uint8)


def write_clip(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "12", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as training wants it: ``CLIPS`` clips of ``LENGTH`` frames, ``STILLS`` stills, licences."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "clips").mkdir()
    (folder / "images").mkdir()
    rows = []
    for k in range(CLIPS):
        wide = textured(96, 160, k)
        write_clip(folder / "clips" / f"pan_{k}.mp4", [wide[:, 2 * t : 2 * t + 128] for t in range(LENGTH)])
        rows.append(f"clips/pan_{k}.mp4\tmade here\t{'CC0' if k else 'GPL-3'}")
    for k in range(STILLS):
        cv2.imwrite(
            str(folder / "images" / f"still_{k}.jpg"), textured(120, 150, 10 + k), [cv2.IMWRITE_JPEG_QUALITY, 95]
        )
        rows.append(f"images/still_{k}.jpg\tmade here\tCC0")
    (folder / "LICENCES.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
