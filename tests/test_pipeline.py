"""The method end to end: sizes and frame counts exact, streamed == whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from oasis_core import landing, pipeline
from oasis_core.geometry import resize
from oasis_core.pipeline import UpscaleSettings

from .tiny_pipeline import clip, identity_model, random_model, upscaler


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


# Sizes and counts.

TARGETS = [
    ((16, 16), {"scale": 1.0}, (16, 16)),
    ((17, 33), {"scale": 1.0}, (17, 33)),
    ((17, 33), {"scale": 1.5}, (26, 50)),
    ((19, 18), {"scale": 2.3}, (44, 41)),
    ((16, 21), {"scale": 4.0}, (64, 84)),
    ((17, 33), {"scale": None, "width": 50}, (26, 50)),
    ((17, 33), {"scale": None, "height": 61}, (61, 118)),
    ((17, 33), {"scale": None, "width": 33, "height": 67}, (67, 33)),
]


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize(("size", "target", "expected"), TARGETS)
def test_output_is_exactly_the_size_asked_for(
    size: tuple[int, int], target: dict[str, float | None], expected: tuple[int, int], factor: int
) -> None:
    up = upscaler(random_model(factor), **target)
    out = up.upscale(clip(3, *size))
    assert out.shape == (3, *expected, 3)
    assert out.dtype == torch.float32
    assert out.device.type == "cpu"
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1
    assert (up.geometry(*size).out_h, up.geometry(*size).out_w) == expected


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize(("size", "target", "expected"), TARGETS)
def test_a_model_that_does_nothing_gives_the_bicubic_image(
    size: tuple[int, int], target: dict[str, float | None], expected: tuple[int, int], factor: int
) -> None:
    frames = clip(6, *size)
    settings = {**target, "chunk_frames": 3, "chunk_overlap": 1, "tile": 24, "tile_overlap": 8}
    out = upscaler(identity_model(factor), **settings).upscale(frames)  # type: ignore[arg-type]
    # Pixels go to [-1, 1] and back: two roundings of 2^-24.
    torch.testing.assert_close(out, resize(frames, *expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize(("chunk", "overlap"), [(1, 0), (1, None), (4, 0), (5, 1), (9, 2), (9, None), (100, 2)])
def test_every_frame_comes_out_once_and_in_order(factor: int, chunk: int, overlap: int | None) -> None:
    up = upscaler(identity_model(factor), chunk_frames=chunk, chunk_overlap=overlap)
    for length in (1, 2, 4, 5, 6, 9, 12, 21):
        values = torch.linspace(0, 1, length)
        out = up.upscale(values[:, None, None, None].expand(length, 16, 16, 3))
        assert out.shape == (length, 16, 16, 3)
        torch.testing.assert_close(out.mean((1, 2, 3)), values, atol=1e-6, rtol=0)


# Streams.


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("length", [1, 4, 14])
def test_streamed_equals_whole(factor: int, length: int) -> None:
    up = upscaler(random_model(factor), UpscaleSettings(scale=1.5, chunk_frames=5, chunk_overlap=1))
    frames = clip(length)
    parts = list(up.stream(iter(frames)))
    assert all(len(part) for part in parts)
    assert torch.equal(torch.cat(parts), up.upscale(frames))


@pytest.mark.parametrize("channels", [3, 4])
def test_memory_that_a_thread_lays_out_holds_the_same(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside a GPU."""
    up, frames = upscaler(random_model(), chunk_frames=5), clip(14, channels=channels)
    expected = up.upscale(frames)
    asked = list[int]()

    @contextmanager
    def beside(block: Tensor, device: torch.device) -> Iterator[Callable[[int], None]]:
        def noted(rows: int) -> None:
            asked.append(rows)
            claim(rows)

        with landing.laid_out(block, torch.device("cuda")) as claim:
            yield noted

    monkeypatch.setattr(landing, "STRETCH", landing.PAGE)
    monkeypatch.setattr(pipeline, "laid_out", beside)
    assert torch.equal(up.upscale(frames), expected)
    assert len(asked) > 1
    assert asked[-1] == 14


@pytest.mark.parametrize("factor", [1, 4])
def test_a_stream_reads_no_further_ahead_than_two_chunks(factor: int) -> None:
    read = 0

    def source() -> Iterator[Tensor]:
        nonlocal read
        for frame in clip(60, 16, 16):
            read += 1
            yield frame

    given = 0
    for part in upscaler(random_model(factor), chunk_frames=8, chunk_overlap=1).stream(source()):
        assert read - given <= 16 + 2 * factor
        given += len(part)
    assert (read, given) == (60, 60)


def test_a_last_group_that_is_not_full_repeats_its_last_frame() -> None:
    up = upscaler(random_model(4))
    frames = clip(7)
    filled = torch.cat([frames, frames[-1:], frames[-1:]])
    assert torch.equal(up.upscale(frames), up.upscale(filled)[:7])


# Hosts.


@pytest.mark.parametrize("factor", [1, 4])
def test_progress_counts_up_to_the_total(factor: int) -> None:
    up = upscaler(random_model(factor), chunk_frames=5, chunk_overlap=1)
    told: list[tuple[int, int | None]] = []
    up.upscale(clip(12), on_progress=lambda done, total: told.append((done, total)))
    counts = [done for done, _ in told]
    assert counts == sorted(set(counts))
    assert told[-1] == (12, 12)
    assert {total for _, total in told} == {12}
    told.clear()
    list(up.stream(clip(12), on_progress=lambda done, total: told.append((done, total))))
    assert told[-1] == (12, None)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 7])
def test_poll_s_exception_passes(stop_at: int) -> None:
    class StopNow(Exception):
        pass

    calls: list[int] = []

    def poll() -> None:
        calls.append(1)
        if len(calls) == stop_at:
            raise StopNow

    up = upscaler(random_model(depth=2), chunk_frames=2, chunk_overlap=0)
    with pytest.raises(StopNow):
        up.upscale(clip(6), poll=poll)
    assert len(calls) == stop_at
    calls.clear()
    stop_at = 0
    up.upscale(clip(6), poll=poll)
    assert len(calls) == 3 * 2 + 6  # blocks of three chunks, and six decoded groups


def test_an_error_of_the_source_passes() -> None:
    def source() -> Iterator[Tensor]:
        yield from clip(3)
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="the file ends here"):
        list(upscaler(random_model()).stream(source()))


def test_an_overlap_that_fills_the_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk overlap is 4 latent frames; a chunk of 4 frames holds 4"):
        upscaler(random_model(), chunk_frames=4, chunk_overlap=4)
