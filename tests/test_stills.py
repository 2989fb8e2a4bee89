"""Still images: read and written without loss where the format has none, and through the command line."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from oasis_core.checkpoints import load_checkpoint
from oasis_core.cli import main
from oasis_core.jobs.clip import upscale_clip
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.video_io.orientation import upright
from oasis_core.video_io.stills import TURNS, read_still, write_still

from .test_cli import make_clip, refused
from .tiny_job import options, save_random_model

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "random.safetensors")


def colors(channels: int = 3, height: int = 24, width: int = 32) -> np.ndarray:
    """8 bits; smooth, so that JPEG keeps them."""
    y, x = np.mgrid[:height, :width] * 255 // 40
    return np.stack([y, x, (x + y) // 2, 255 - y][:channels], -1).astype(np.uint8)


def draw(path: Path, channels: int = 3, **saved: object) -> Path:
    Image.fromarray(colors(channels)).save(path, **saved)  # type: ignore[arg-type]
    return path


def draw_deep(path: Path, channels: int = 3, profile: bytes | None = None) -> torch.Tensor:
    values = torch.rand(24, 32, channels, generator=torch.Generator().manual_seed(0))
    write_still(path, values, 16, profile)
    return values


def upscale(source: Path, target: Path, model: Path, *more: str) -> int:
    return main(["upscale", str(source), str(target), *options(model)[:-2], *more])


# Files.


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("profile", [None, SRGB])
def test_16_bits_come_back_with_transparency_and_profile(tmp_path: Path, channels: int, profile: bytes | None) -> None:
    values = draw_deep(tmp_path / "a.png", channels, profile)
    found = read_still(tmp_path / "a.png")
    assert (found.depth, found.profile, found.has_alpha) == (16, profile, channels == 4)
    torch.testing.assert_close(found.pixels[0], values, atol=0.5001 / 65535, rtol=0)
    with Image.open(tmp_path / "a.png") as image:  # another reader
        image.load()
        assert image.info.get("icc_profile") == profile
        assert np.abs(np.asarray(image).astype(int) - (values.numpy() * 255)).max() < 1.1


@pytest.mark.parametrize(("mode", "alpha"), [("RGB", False), ("RGBA", True), ("L", False), ("LA", True), ("P", False)])
def test_8_bits_of_every_kind(tmp_path: Path, mode: str, alpha: bool) -> None:
    image = Image.fromarray(colors(4 if alpha else 3)).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=SRGB)
    found = read_still(tmp_path / "a.png")
    assert (found.depth, found.profile, found.has_alpha) == (8, SRGB, alpha)
    assert np.array_equal(found.pixels[0].numpy() * 255, np.asarray(image.convert("RGBA" if alpha else "RGB")))
    write_still(tmp_path / "b.png", found.pixels[0], 8, found.profile)
    again = read_still(tmp_path / "b.png")
    assert torch.equal(again.pixels, found.pixels)
    assert again.profile == SRGB


def test_a_color_that_stands_for_nothing_is_transparency(tmp_path: Path) -> None:
    Image.fromarray(colors()).save(tmp_path / "a.png", transparency=tuple(map(int, colors()[0, 0])))
    alpha = read_still(tmp_path / "a.png").pixels[0, ..., 3]
    assert alpha[0, 0] == 0
    assert alpha[5, 5] == 1


def test_gray_of_16_bits(tmp_path: Path) -> None:
    codes = (np.arange(24 * 32, dtype=np.uint32).reshape(24, 32) * 80).astype(np.uint16)
    Image.fromarray(codes).save(tmp_path / "a.png")
    found = read_still(tmp_path / "a.png")
    assert found.depth == 16
    assert np.abs(found.pixels[0].numpy() * 65535 - codes[..., None]).max() <= 1


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_turned_photo_stands_upright(tmp_path: Path, turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    draw(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_still(tmp_path / "a.png").pixels[0].numpy() * 255, expected)
    assert np.array_equal(upright(torch.from_numpy(colors()), *TURNS[turned]).numpy(), expected)


def test_what_is_no_still_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    frames = [Image.fromarray(colors()), Image.fromarray(255 - colors())]
    frames[0].save(tmp_path / "b.webp", save_all=True, append_images=frames[1:])
    Image.fromarray(colors()[..., 0].astype(np.float32)).save(tmp_path / "c.tif")
    whole = draw(tmp_path / "d.png").read_bytes()
    (tmp_path / "d.png").write_bytes(whole[: len(whole) // 2])
    for name, words in (
        ("a.png", "is not an image that can be read"), ("b.webp", "holds 2 pictures"), ("c.tif", "32 bits a value"),
        ("d.png", "is not an image that can be read"), ("none.png", "input not found"),
    ):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            read_still(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
def test_damaged_images_are_refused_in_one_line_or_read(tmp_path: Path, name: str) -> None:
    if name == "deep.png":
        draw_deep(tmp_path / name, 4, SRGB)
    else:
        draw(tmp_path / name)
    whole, generator, refusals = (tmp_path / name).read_bytes(), random.Random(0), []
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.choice([1, 2, 8])):
            data[generator.randrange(generator.choice([100, len(data)]))] = generator.randrange(256)
        (tmp_path / name).write_bytes(data[: generator.choice([len(data), generator.randrange(len(data))])])
        try:
            assert read_still(tmp_path / name).pixels.ndim == 4
        except ValueError as e:
            refusals.append(str(e))
    assert len(refusals) > 5
    assert all(str(tmp_path / name) in told and len(told.splitlines()) == 1 for told in refusals)


# The command.


@pytest.mark.parametrize(
    ("source", "target", "channels"),
    [("a.png", "b.png", 3), ("a.png", "b.png", 4), ("a.jpg", "b.png", 3), ("a.webp", "b.webp", 4), ("a.png", "b.jpg", 3),
     ("a.jpg", "b.JPEG", 3), ("a.png", "b.webp", 4), ("a.bmp", "b.png", 3)],
)  # fmt: skip
def test_a_picture_becomes_a_picture(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], source: str, target: str, channels: int
) -> None:
    draw(tmp_path / source, channels)
    assert upscale(tmp_path / source, tmp_path / target, model) == 0
    assert re.search(rf"{re.escape(target)}: 64x48, [\d.]+ s", capsys.readouterr().out)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source, target])
    found = read_still(tmp_path / target)
    assert found.pixels.shape == (1, 48, 64, channels)
    checkpoint = load_checkpoint(model)
    up = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings(scale=2.0, chunk_frames=5, chunk_overlap=1))
    expected = upscale_clip(up, read_still(tmp_path / source).pixels)
    lossy = Path(target).suffix.lower() != ".png"
    assert (found.pixels - expected).abs().mean() < (0.03 if lossy else 0.6 / 255)
    if not lossy:
        torch.testing.assert_close(found.pixels, expected, atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize(("more", "depth"), [((), 16), (("--depth", "8"), 8)])
def test_16_bits_stay_16_bits(tmp_path: Path, model: Path, more: tuple[str, ...], depth: int) -> None:
    draw_deep(tmp_path / "a.png", 4, SRGB)
    assert upscale(tmp_path / "a.png", tmp_path / "b.png", model, *more) == 0
    found = read_still(tmp_path / "b.png")
    assert (found.depth, found.profile, found.has_alpha) == (depth, SRGB, True)
    draw(tmp_path / "c.png")
    assert upscale(tmp_path / "c.png", tmp_path / "d.png", model, "--depth", "16") == 0
    assert read_still(tmp_path / "d.png").depth == 16


def test_a_plan_of_a_picture(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", tmp_path / "b.png", model, "--plan") == 0
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines()] == ["output", "tile", "memory", "time"]
    assert "64x48, 1 frame\n" in told
    assert not (tmp_path / "b.png").exists()
    (tmp_path / "both").mkdir()
    draw(tmp_path / "both" / "a.png")
    argv = ["upscale", str(tmp_path / "both"), str(tmp_path / "new"), "--batch", "--plan", *options(model)[:-2]]
    assert main(argv) == 0  # the folder is made by the job
    assert not (tmp_path / "new").exists()


def test_what_a_picture_cannot_be_is_refused(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, clear = make_clip(tmp_path / "in.mp4"), draw(tmp_path / "clear.png", 4)
    photo, wide = draw(tmp_path / "photo.png"), tmp_path / "wide.png"
    Image.new("RGB", (8200, 16)).save(wide)
    (tmp_path / "frames").mkdir()
    draw(tmp_path / "frames" / "1.png")
    before = sorted(tmp_path.rglob("*"))
    fixed = options(model)[:-2]
    for argv, words in (
        ([clip, tmp_path / "b.png"], "output is one image (b.png) and the input is none (in.mp4)"),
        ([tmp_path / "frames", tmp_path / "b.png"], "give a video file's name, or --codec png and a new folder"),
        ([photo, photo], "output is the input itself"),
        ([photo, tmp_path / "b.png", "--codec", "h265"], "codec is 'h265', but b.png is a still image"),
        ([photo, tmp_path / "b.png", "--crf", "20"], "crf is 20, but png has no such"),
        ([photo, tmp_path / "b.png", "--depth", "10"], "depth is 10 bits; png has 8, 16"),
        ([photo, tmp_path / "b.jpg", "--depth", "16"], "depth is 16 bits; .jpg has 8"),
        ([photo, tmp_path / "b.png", "--fps", "25"], "--fps is for videos"),
        ([photo, tmp_path / "b.png", "--deinterlace", "frame"], "--deinterlace is for videos"),
        ([photo, tmp_path / "b.png", "--engine", "ray"], "is a still image, which --engine ray does not take"),
        ([photo, tmp_path / "b.gif"], "b.gif cannot be written; of a still image give .png, .jpg, .jpeg, .webp"),
        ([clear, tmp_path / "b.jpg"], "has transparency, which .jpg cannot hold"),
        ([wide, tmp_path / "b.webp"], ".webp cannot hold 16400x32; a side can have 16383 pixels"),
        ([photo, tmp_path / "none" / "b.png"], "does not exist; create it first"),
        ([tmp_path / "none.png", tmp_path / "b.png"], "input not found"),
    ):
        assert words in refused(capsys, "upscale", *argv, *fixed), words
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_videos_and_pictures(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films, out = tmp_path / "in", tmp_path / "out"
    films.mkdir()
    make_clip(films / "a.mkv", 3)
    draw(films / "b.jpg")
    draw(films / "c.bmp")
    (films / "d.png").write_bytes(b"no picture")
    argv = ["upscale", str(films), str(out), *options(model, codec="ffv1"), "--batch"]
    assert main([*argv, "--depth", "10"]) == 2  # which ffv1 has
    captured = capsys.readouterr()
    assert captured.err.count("depth is 10 bits; .png has 8 or 16") == 1
    assert captured.err.count("depth is 10 bits; .jpg has 8") == 1
    assert [p.name for p in out.iterdir()] == ["a.mkv"]
    (out / "a.mkv").unlink()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert "d.png: " in captured.err
    assert "is not an image that can be read" in captured.err
    assert sorted(p.name for p in out.iterdir()) == ["a.mkv", "b.jpg", "c.png"]
    assert read_still(out / "c.png").pixels.shape == (1, 48, 64, 3)
    stamps = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    draw(films / "d.png", 4)
    assert main([*argv, "--resume"]) == 0
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert read_still(out / "d.png").has_alpha


def test_a_picture_is_not_replaced_unasked(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, out = draw(tmp_path / "a.png"), tmp_path / "b.png"
    out.write_bytes(b"old")
    assert "b.png exists already" in refused(capsys, "upscale", photo, out, *options(model)[:-2])
    assert upscale(photo, out, model, "--overwrite") == 0
    assert read_still(out).pixels.shape == (1, 48, 64, 3)


def test_images_as_frames_still_become_a_video_or_a_folder(tmp_path: Path, model: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        draw(frames / f"frame_{number}.png")
    assert upscale(frames, tmp_path / "a.mkv", model, "--codec", "ffv1") == 0
    assert upscale(frames, tmp_path / "folder.png", model, "--codec", "png") == 0
    assert len(list((tmp_path / "folder.png").iterdir())) == 3
