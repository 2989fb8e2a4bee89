"""``oasis evaluate`` as users call it, its bad input, and the benchmark that makes the README's table."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import av
import cv2
import numpy as np
import pytest
import torch

from oasis_core.checkpoints import save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.cli import main
from oasis_core.evaluation import report
from oasis_core.evaluation.clips import ClipFile, pair_clips
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.routing import RoutingSpec

ROOT = Path(__file__).parents[1]
SCORES = {c.key for c in report.COLUMNS}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in test_evaluation.py."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write(path: Path, frames: list[np.ndarray]) -> None:
    """FFV1, RGB."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of three frames, 96x64: ``gt``, ``soft`` (blurred, one as images), ``lq/real`` (24x16)."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("gt", "soft", "lq/real"):
        (folder / name).mkdir(parents=True)
    film = list(islice(ClipFile(ROOT / "assets" / "sample.mp4"), 3))
    for name, left in (("grass", 40), ("rock", 180)):
        clip = [np.ascontiguousarray(f[100:164, left : left + 96]) for f in film]
        write(folder / "gt" / f"{name}.mkv", clip)
        write(folder / "lq/real" / f"{name}.mkv", [cv2.resize(f, (24, 16), interpolation=cv2.INTER_AREA) for f in clip])
        soft = [cv2.GaussianBlur(f, (0, 0), 1.5) for f in clip]
        if name == "grass":
            write(folder / "soft" / "grass.mkv", soft)
            continue
        (folder / "soft" / name).mkdir()
        for i, frame in enumerate(soft):
            cv2.imwrite(str(folder / "soft" / name / f"frame_{i:05d}.png"), frame[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = OasisConfig(
        name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=2, heads=2, ffn_dim=24, freq_dim=8,
        faithful_timestep=500.0, decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_checkpoint(path, OasisModel(config), Metadata(config, RoutingSpec.by_ratio(2, 2, 0.5, 0.5), "Apache-2.0"))
    return path


def evaluate(*argv: str | Path) -> int:
    return main(["evaluate", *map(str, argv)])


def test_evaluate(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole: table, means, JSON, and baselines from our JSON, from a table of several, and from a folder."""
    file, soft = tmp_path / "scores.json", data / "soft"
    assert evaluate(data / "gt", soft, "--json", file) == 0
    head, *rows, _, _ = capsys.readouterr().out.splitlines()
    assert all(c.title in head for c in report.COLUMNS)
    assert [row.split()[0] for row in rows] == ["grass", "rock", "mean"]
    assert len({len(line) for line in (head, *rows)}) == 1
    found = json.loads(file.read_text(encoding="utf-8"))
    assert set(found["clips"]["rock"]) == SCORES
    for key, value in found["mean"].items():
        assert value == pytest.approx((found["clips"]["grass"][key] + found["clips"]["rock"][key]) / 2)
    assert rows[0].split()[1] == f"{found['clips']['grass']['psnr']:.2f}"

    several = tmp_path / "others.json"
    theirs = {
        "grass": {"psnr": 20.0},
        "rock": {"psnr": 30.0, "more": 1.0},
        "unasked": {"psnr": 99.0},
        "mean": {"psnr": 7.0},
    }
    several.write_text(json.dumps({"setting": "x", "theirs": theirs, "steady": {"grass": 1.0}}), encoding="utf-8")
    baselines = [f"before={file}", f"theirs={several}", f"folder={soft}"]
    options = [word for baseline in baselines for word in ("--baseline", baseline)]
    assert evaluate(data / "gt", soft, *options, "--clips", "*", "--json", file) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    mean, before, other, folder = lines[3:7]
    assert [mean[0], before[0], other[0], folder[0]] == ["mean", "before", "theirs", "folder"]
    assert mean[1:] == before[1:] == folder[1:]
    assert other[1:] == ["25.00", *["-"] * (len(report.COLUMNS) - 1)]
    assert json.loads(file.read_text(encoding="utf-8"))["baselines"]["before"] == pytest.approx(found["mean"])


def test_clips_are_paired_by_name(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert list(pair_clips(data / "gt", data / "soft")) == ["grass", "rock"]
    assert list(pair_clips(data / "gt", data / "soft", "r*")) == ["rock"]
    assert list(pair_clips(data / "gt", data / "soft", "grass.mkv")) == ["grass"]
    (tmp_path / "rock.webm").touch()
    (tmp_path / "notes.txt").touch()
    assert pair_clips(data / "gt", tmp_path)["rock"] == (data / "gt/rock.mkv", tmp_path / "rock.webm")
    assert "no output, left out: grass" in caplog.text


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """Exit code 2 and one line on standard error, which is returned; nothing but the table's head before it."""
    assert evaluate(*argv) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) <= 1
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    return captured.err


def test_bad_input_is_told_in_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gt, soft, empty, twice = data / "gt", data / "soft", tmp_path / "empty", tmp_path / "twice"
    empty.mkdir()
    twice.mkdir()
    for name in ("rock.mkv", "rock.mp4"):
        (twice / name).touch()
    (tmp_path / "text.json").write_text("{nothing", encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "one.json").write_text('{"clips": {"rock": {"psnr": 1}}}', encoding="utf-8")
    for said, argv in (
        ("no such folder", (tmp_path / "none", soft)),
        ("no such folder", (gt, tmp_path / "none")),
        ("holds no clip; give a folder of videos", (empty, soft)),
        (r"holds no clip that 'x\*' names", (gt, soft, "--clips", "x*")),
        ("no clip of .* has an output of the same name in .*such as grass.mkv", (gt, empty)),
        ("two clips of one name: rock.mkv and rock.mp4", (gt, twice)),
        ("grass: sizes differ: ground truth 96x64, output 24x16", (gt, data / "lq/real")),
        ("give NAME=FILE.json or NAME=FOLDER", (gt, soft, "--baseline", "theirs")),
        ("baseline theirs not found", (gt, soft, "--baseline", f"theirs={tmp_path / 'none'}")),
        ("is not JSON", (gt, soft, "--baseline", f"theirs={tmp_path / 'text.json'}")),
        ("holds no scores of clips", (gt, soft, "--baseline", f"theirs={tmp_path / 'list.json'}")),
        ("baseline theirs has no scores of grass", (gt, soft, "--baseline", f"theirs={tmp_path / 'one.json'}")),
        ("baseline theirs has no output of grass, rock", (gt, soft, "--baseline", f"theirs={empty}")),
        ("the folder .* does not exist", (gt, soft, "--json", tmp_path / "none" / "out.json")),
    ):
        assert re.search(said, refused(capsys, *argv)), said


def test_missing_packages_are_told_with_the_remedy(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n in ("cv2", "torchmetrics") else find(n, *a)
    )
    line = refused(capsys, data / "gt", data / "soft")
    assert "needs torchmetrics, opencv-python-headless: pip install torchmetrics opencv-python-headless" in line


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quality", ROOT / "benchmarks" / "quality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_scores_what_oasis_upscale_writes(
    data: Path, model: Path, tmp_path: Path, quality: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal to upscaling each clip into a lossless file and evaluating that."""
    grass = {"grass": {"psnr": 21.5}, "rock": {"psnr": 22.5}}
    known = {"setting": "lq/real", "bicubic": grass, "partial": {"rock": {"psnr": 1.0}}}
    (data / "scores.json").write_text(json.dumps(known), encoding="utf-8")
    file, fixed = tmp_path / "quality.json", ["--model", str(model), "--device", "cpu", "--dtype", "fp32"]
    quality.main([str(data), *fixed, "--fidelity", "0", "1", "--json", str(file)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lq/real, mean of 2 clips"
    assert [line.split("  ")[0] for line in lines[2:]] == ["random, fidelity 0", "random, fidelity 1", "bicubic"]
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {"date", "commit", "command", "device", "weights"} <= set(found)
    assert found["command"].startswith("python benchmarks/quality.py DATA_DIR --model random.safetensors")
    assert str(tmp_path.parent) not in file.read_text(encoding="utf-8")
    assert found["baselines"] == {"real": {"bicubic": {"psnr": 22.0}}}

    (tmp_path / "out").mkdir()
    lossless = ["--codec", "ffv1", "--fidelity", "1"]
    for path in (data / "lq/real").iterdir():
        assert main(["upscale", str(path), str(tmp_path / "out" / path.name), *lossless, *fixed]) == 0
    evaluated = tmp_path / "evaluated.json"
    assert evaluate(data / "gt", tmp_path / "out", "--json", evaluated) == 0
    row = found["settings"]["real"]["random, fidelity 1"]
    for clip, scores in json.loads(evaluated.read_text(encoding="utf-8"))["clips"].items():
        assert row["clips"][clip] == pytest.approx(scores, rel=1e-5)
    assert found["settings"]["real"]["random, fidelity 0"]["mean"] != pytest.approx(row["mean"])


def test_the_benchmark_takes_the_first_frames(
    data: Path, model: Path, quality: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    quality.main([str(data), "--model", str(model), "--device", "cpu", "--frames", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lq/real, mean of 2 clips, first 1 frames")
    assert lines[2].split()[0] == "random"
    assert lines[2].split()[-3:] == ["-", "-", "-"]  # one frame: no E_warp, no flicker
