"""The command as users call it: the whole way on a tiny random model, and every bad input with its one line."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oasis_core.checkpoints import save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.cli import main
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.routing import HeadPattern, RoutingSpec
from oasis_core.video_io import VideoReader

SAMPLE = Path(__file__).parents[1] / "assets" / "sample.mp4"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = OasisConfig(
        name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=2, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    routing = RoutingSpec.by_ratio(2, 2, 0.5, 0.5)
    save_checkpoint(path, OasisModel(config), Metadata(config, routing, "Apache-2.0"))
    return path


def make_clip(path: Path, frames: int = 5, width: int = 32, height: int = 24, kind: str = "libx264") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(kind, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            noise = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """Run a command that must fail: exit code 2 and one line on standard error, which is returned."""
    try:
        code = main([str(a) for a in argv])
    except SystemExit as e:  # argparse
        code = int(e.code or 0)
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    return captured.err


@pytest.mark.parametrize(("options", "size"), [
    ([], (128, 96)), (["--scale", "1.5"], (48, 36)),
    (["--size", "100x"], (100, 75)), (["--size", "64x64"], (64, 64)),
])  # fmt: skip
def test_upscale(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], options: list[str], size: tuple[int, int]
) -> None:
    clip, out = make_clip(tmp_path / "in.mp4"), tmp_path / "out.mkv"
    fixed = ["--model", str(model), "--codec", "ffv1", "--device", "cpu"]
    assert main(["upscale", str(clip), str(out), *fixed, *options]) == 0
    reader = VideoReader(out)
    frames = list(reader)
    assert len(frames) == 5
    assert tuple(frames[0].rgb.shape[:2]) == size[::-1]
    line = capsys.readouterr().out
    assert re.search(rf"5 frames, {size[0]}x{size[1]}, [\d.]+ s, [\d.]+ frames per second", line)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mkv"]


def test_sound_and_rate_of_the_sample_are_kept(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.mp4"
    assert main(["upscale", str(SAMPLE), str(out), "--model", str(model), "--scale", "1", "--device", "cpu"]) == 0
    with av.open(str(SAMPLE)) as source, av.open(str(out)) as target:
        assert source.streams.video[0].average_rate == target.streams.video[0].average_rate
        sound = [[bytes(p) for p in c.demux(c.streams.audio[0]) if p.size] for c in (source, target)]
    assert sound[0] == sound[1]


def test_bad_inputs(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, out = make_clip(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        container.add_stream("aac", rate=48000)
    other = tmp_path / "other.json"
    other.write_text(RoutingSpec.uniform(3, 2, HeadPattern.GLOBAL).to_json())
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    save_file({"x": torch.zeros(1)}, tmp_path / "random.safetensors")
    torch.save({"x": torch.zeros(1)}, tmp_path / "pickle.safetensors")
    before = sorted(tmp_path.iterdir())
    good = ["--model", model, "--device", "cpu"]
    for argv, words in (
        ([tmp_path / "none.mp4", out, *good], "none.mp4"),
        ([text, out, *good], "text.mp4"),
        ([tmp_path / "sound.mp4", out, *good], "sound.mp4"),
        ([clip, tmp_path / "no" / "out.mp4", *good], "out.mp4"),
        ([clip, tmp_path, *good], "folder"),
        ([clip, tmp_path / "out.xyz", *good], "xyz"),
        ([clip, clip, *good], "input itself"),
        ([clip, out, "--model", tmp_path / "none.safetensors"], "not found"),
        ([clip, out, "--model", text], "safetensors"),
        ([clip, out, "--model", tmp_path / "random.safetensors"], "not an OASIS checkpoint"),
        ([clip, out, "--model", tmp_path / "pickle.safetensors"], "safetensors"),
        ([clip, out, "--model", "oasis-huge"], "oasis-huge"),
        ([clip, out, *good, "--routing", other], "another model"),
        ([clip, out, *good, "--routing", broken], "broken.json"),
        ([clip, out, *good, "--routing", tmp_path / "none.json"], "not found"),
        ([clip, out, *good, "--scale", "0.5"], "0.5"),
        ([clip, out, *good, "--scale", "9"], "from 1 to 4"),
        ([clip, out, *good, "--scale", "big"], "big"),
        ([clip, out, *good, "--size", "9999x"], "9999"),
        ([clip, out, *good, "--size", "big"], "1920x1080"),
        ([clip, out, *good, "--overlap", "16"], "chunk overlap is 16"),
        ([clip, out, *good, "--scale", "2", "--size", "64x"], "not both"),
        ([clip, out, *good, "--tile", "-1"], "tile is -1"),
        ([clip, out, *good, "--tile", "7"], "tile is 7; it must be 0"),
        ([clip, out, *good, "--tile", "100"], "multiple of 16, this model's token, such as 96 or 112"),
        ([clip, out, *good, "--chunk", "0"], "at least 1"),
        ([clip, out, *good, "--color", "sepia"], "sepia"),
        ([clip, out, *good, "--codec", "h266"], "h266"),
        ([clip, out, *good, "--crf", "99"], "99"),
        ([clip, out, *good, "--preset", "placebo"], "preset is 'placebo'; allowed: ultrafast, "),
        ([clip, out, *good, "--codec", "prores", "--preset", "fast"], "has none"),
        ([clip, out, *good, "--fps", "30"], "30"),
        ([clip, out, "--model", model, "--device", "tpu"], "tpu"),
        ([clip, out, *good, "--dtype", "int3"], "int3"),
        ([clip], "output"),
    ):
        assert words in refused(capsys, "upscale", *argv), words
    assert sorted(tmp_path.iterdir()) == before


def test_a_cut_off_video_is_used_as_far_as_it_goes(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_clip(tmp_path / "in.mp4", 60, 64, 48)
    fast = tmp_path / "fast.mp4"
    with av.open(str(whole)) as source, av.open(str(fast), "w", options={"movflags": "+faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut, out = tmp_path / "cut.mp4", tmp_path / "out.mp4"
    cut.write_bytes(fast.read_bytes()[: fast.stat().st_size // 2])
    assert main(["upscale", str(cut), str(out), "--model", str(model), "--scale", "1", "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    assert "cut.mp4" in captured.err.strip().splitlines()[-1]
    count = sum(1 for _ in VideoReader(out))
    assert 0 < count < 60
    assert f"{count} frames" in captured.out


def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "in.mp4")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OasisModel, "decode", interrupt)
    assert main(["upscale", str(clip), str(tmp_path / "out.mp4"), "--model", str(model), "--device", "cpu"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


def test_demo_makes_video_and_picture(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--model", str(model)]) == 0
    assert re.search(r"24 frames, 1280x720, [\d.]+ s, [\d.]+ frames per second", capsys.readouterr().out)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["sample_compare.png", "sample_x4.mp4"]


def test_the_command_is_installed() -> None:
    out = subprocess.run([sys.executable, "-m", "oasis_core", "--help"], capture_output=True, text=True, check=True)
    assert all(command in out.stdout for command in ("upscale", "demo", "info", "train"))


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"oasis {metadata.version('oasis')}, torch {torch.__version__}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory of a child is read by resource, which Windows lacks")
def test_memory_does_not_grow_with_length(tmp_path: Path, model: Path) -> None:
    """Peak resident memory of the whole process on 30 and 150 frames; the difference stays under a clip's own size."""
    peaks = []
    for frames in (30, 150):
        clip = make_clip(tmp_path / f"{frames}.mp4", frames, 96, 64)
        argv = ["upscale", str(clip), str(tmp_path / f"out{frames}.mp4"), "--model", str(model), "--device", "cpu"]
        code = (
            "import resource, sys; from oasis_core.cli import main; code = main(sys.argv[1:]);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, code)"
        )
        out = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
        peak, status = out.stdout.split()[-2:]
        assert status == "0"
        peaks.append(int(peak) / (1024 if sys.platform != "darwin" else 2**20))
    # 120 more frames of 384x256x3 fp32 would be 135 MiB, as uint8 34 MiB
    assert peaks[1] - peaks[0] < 25, peaks


def test_info_tells_what_a_checkpoint_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "oasis-tiny" in capsys.readouterr().out
    assert main(["info", str(model)]) == 0
    out = capsys.readouterr().out
    assert "50% global, 50% intra-frame, 0% window" in out
    assert "Apache-2.0" in out
    assert "safetensors" in refused(capsys, "info", Path(__file__).with_suffix(".safetensors"))
