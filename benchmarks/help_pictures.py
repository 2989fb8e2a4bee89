"""The icon, and the pictures of the nodes' help pages from the bundled sample: python benchmarks/help_pictures.py

Make them anew when the shipped weights change. The page shows them about 300 pixels wide. (``load_model.jpg`` is taken by
``tests/comfy/test_page.py``.)
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from oasis_core.checkpoints import embedded_path, load_checkpoint
from oasis_core.color import ColorMethod, correct_color
from oasis_core.compare import CompareMode, compare_frames
from oasis_core.geometry import resize
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing.attention_map import attention_map, attention_picture
from oasis_core.routing.picture import NamedRouting, routing_picture
from oasis_core.routing.spec import DEFAULT_WINDOW, HeadPattern
from oasis_core.video_io import VideoReader

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "assets" / "sample.mp4"
PICTURES = ROOT / "web" / "docs" / "pictures"
ICON = ROOT / "assets" / "icon.png"
ICON_SIDE, ICON_COARSE = 256, 16
"""Pixels, and the blocks of its left half."""
FRAMES = slice(8, 13)
"""Of the sample; the middle one is shown."""
VIEW = (290, 270, 300, 300)
"""Top, left, height, width of what is shown, in pixels of the result."""
TOKEN = {"at": 0.5, "y": 0.55, "x": 0.3}
"""Place of the token whose attention is shown."""
FIDELITIES = (0.0, 0.5, 1.0)
SHIFT = torch.tensor([1.2, 0.95, 0.65])
"""What the shifted frame's red, green and blue are multiplied by."""
GRID = (3, 7, 9)
"""Frames, rows and columns of tokens in the picture of the patterns."""
CELL, GAP, MARGIN = 14, 18, 16
"""Pixels: side of a token, between frames, around."""
SPACE = 4
"""Pixels between panels."""
SEEN, UNSEEN, QUERY = (236, 140, 40), (70, 74, 82), (255, 255, 255)
BACKGROUND = (32, 34, 38)
TITLES = {HeadPattern.GLOBAL: "global", HeadPattern.INTRA_FRAME: "intra-frame", HeadPattern.WINDOW: "window (3,5,5)"}


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    frames = torch.stack([f.rgb for f in islice(VideoReader(SAMPLE), FRAMES.start, FRAMES.stop)]).clamp(0, 1)
    upscale_picture(frames).save(PICTURES / "upscale.jpg", quality=88)
    color_picture(frames[len(frames) // 2]).save(PICTURES / "color.jpg", quality=88)
    compare_picture(frames).save(PICTURES / "compare.jpg", quality=88)
    patterns_picture().save(PICTURES / "routing.png", optimize=True)
    routing_map_picture().save(PICTURES / "routing_map.png", optimize=True)
    attention_map_picture(frames).save(PICTURES / "attention_map.jpg", quality=85)
    icon().save(ICON, optimize=True)


def upscale_picture(frames: Tensor) -> Image.Image:
    """Input and three values of fidelity, at 100 % of the result's pixels."""
    checkpoint, middle = load_checkpoint(embedded_path()), len(frames) // 2
    nearest = frames[middle].repeat_interleave(4, 0).repeat_interleave(4, 1)
    panels = [labelled(view(nearest), "input")]
    for fidelity in FIDELITIES:
        settings = UpscaleSettings(fidelity=fidelity)
        result = Upscaler(checkpoint.model, checkpoint.routing, settings).upscale(frames)[middle]
        panels.append(labelled(view(result), f"fidelity {fidelity:g}"))
    return mosaic(panels, 2)


def color_picture(frame: Tensor) -> Image.Image:
    """A frame, its colours shifted, the reference (small and soft), and what the three methods make of these."""
    reference = resize(frame[None], 45, 80)
    shifted = (frame * SHIFT).clamp(0, 1)
    fitted = resize(reference, *frame.shape[:2])
    shown = {"original": frame, "shifted": shifted, "reference": fitted[0].clamp(0, 1)}
    for method in (ColorMethod.WAVELET, ColorMethod.ADAIN, ColorMethod.LAB):
        shown[method.value] = correct_color(shifted[None], fitted, method)[0]
    return mosaic([labelled(part[:, 70:270], name) for name, part in shown.items()], 3)


def compare_picture(frames: Tensor) -> Image.Image:
    """The three modes of OASIS Compare, on a part of the middle frame before and after."""
    checkpoint, middle = load_checkpoint(embedded_path()), len(frames) // 2
    after = view(Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings()).upscale(frames)[middle])
    before = view(resize(frames[middle : middle + 1], *(4 * side for side in frames.shape[1:3]))[0])
    wipe, beside, difference = (compare_frames(before, after, mode) for mode in CompareMode)
    row = mosaic([labelled(wipe, "wipe"), labelled(difference, "difference")], 2)
    picture = Image.new("RGB", (row.width, 2 * row.height + SPACE), BACKGROUND)
    picture.paste(row, (0, 0))
    picture.paste(labelled(beside, "side by side"), (0, row.height + SPACE))
    return picture


def patterns_picture() -> Image.Image:
    """What one token (white) sees under each pattern, in a chunk of three frames."""
    t, h, w = GRID
    panel_height = 26 + h * CELL
    image = Image.new(
        "RGB", (2 * MARGIN + t * w * CELL + (t - 1) * GAP, 2 * MARGIN + 3 * panel_height + 2 * GAP), BACKGROUND
    )
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    query = (t // 2, h // 2 + 1, w // 2 - 1)
    for row, pattern in enumerate(HeadPattern):
        top = MARGIN + row * (panel_height + GAP)
        draw.text((MARGIN, top), TITLES[pattern], font=font, fill=(230, 230, 230))
        for frame in range(t):
            left = MARGIN + frame * (w * CELL + GAP)
            for y in range(h):
                for x in range(w):
                    token = (frame, y, x)
                    fill = QUERY if token == query else SEEN if sees(pattern, query, token) else UNSEEN
                    at = (left + x * CELL, top + 26 + y * CELL)
                    draw.rectangle((*at, at[0] + CELL - 2, at[1] + CELL - 2), fill=fill)
    return image


def routing_map_picture() -> Image.Image:
    """The shipped routing."""
    checkpoint = load_checkpoint(embedded_path(), dtype=None)
    return routing_picture([NamedRouting(checkpoint.config.name, checkpoint.routing)])


def attention_map_picture(frames: Tensor) -> Image.Image:
    """What the first global head of the shipped weights sees."""
    checkpoint = load_checkpoint(embedded_path())
    upscaler = Upscaler(checkpoint.model, checkpoint.routing, UpscaleSettings())
    routing = checkpoint.routing
    layer, head = next((i, n) for i in range(routing.depth) for n in routing.heads_of(i, HeadPattern.GLOBAL))
    return attention_picture(attention_map(upscaler, frames, layer, head, **TOKEN))


def icon() -> Image.Image:
    """Sun, dunes and water; coarse on the left, fine on the right."""
    side = 4 * ICON_SIDE
    image = Image.new("RGB", (side, side), (16, 44, 84))
    draw = ImageDraw.Draw(image)
    draw.ellipse([side * k for k in (0.30, 0.16, 0.70, 0.56)], fill=(255, 196, 64))
    draw.ellipse([side * k for k in (-0.55, 0.47, 0.75, 1.4)], fill=(214, 138, 60))
    draw.ellipse([side * k for k in (0.30, 0.53, 1.6, 1.4)], fill=(236, 166, 84))
    draw.ellipse([side * k for k in (0.10, 0.72, 0.90, 0.96)], fill=(52, 190, 190))
    fine = image.resize((ICON_SIDE, ICON_SIDE), Image.Resampling.LANCZOS)
    coarse = image.resize((ICON_COARSE, ICON_COARSE), Image.Resampling.BOX)
    left = coarse.resize((ICON_SIDE, ICON_SIDE), Image.Resampling.NEAREST).crop((0, 0, ICON_SIDE // 2, ICON_SIDE))
    fine.paste(left, (0, 0))
    return fine


def sees(pattern: HeadPattern, query: tuple[int, int, int], token: tuple[int, int, int]) -> bool:
    """Paper section 3.2."""
    if pattern is HeadPattern.INTRA_FRAME:
        return query[0] == token[0]
    near = all(abs(a - b) <= extent // 2 for a, b, extent in zip(query, token, DEFAULT_WINDOW, strict=True))
    return pattern is HeadPattern.GLOBAL or near


def view(frame: Tensor) -> Tensor:
    top, left, height, width = VIEW
    return frame[top : top + height, left : left + width]


def labelled(part: Tensor, name: str) -> Image.Image:
    image = Image.fromarray((part.clamp(0, 1) * 255).round().byte().contiguous().numpy())
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(20)
    box = draw.textbbox((8, 6), name, font=font)
    draw.rectangle((box[0] - 5, box[1] - 3, box[2] + 5, box[3] + 3), fill=(0, 0, 0))
    draw.text((8, 6), name, font=font, fill=(255, 255, 255))
    return image


def mosaic(panels: list[Image.Image], columns: int) -> Image.Image:
    """Panels of one size, row by row."""
    width, height = panels[0].width + SPACE, panels[0].height + SPACE
    rows = -(-len(panels) // columns)
    picture = Image.new("RGB", (columns * width - SPACE, rows * height - SPACE), BACKGROUND)
    for i, panel in enumerate(panels):
        picture.paste(panel, (i % columns * width, i // columns * height))
    return picture


if __name__ == "__main__":
    main()
