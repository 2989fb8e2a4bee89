"""Pictures of what photographs hold too little of, straight edges and text: house fronts, signs, pages, fences, wheels, wires.

    python -m oasis_core.training.drawings data/train/images --count 240 --photos data/train/images

Each is a photograph with some flat things in it, seen at a slant. Everything is drawn ``FINE`` times larger and averaged, so that
edges are as a lens makes them. Fonts are matplotlib's (DejaVu, STIX, Computer Modern). Pictures are repeatable by ``--seed`` and
the photographs. Licence: those of the photographs; the drawings add none.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT = 1280, 864
FINE = 2
"""Pixels drawn for one of the picture's, along each side."""
THINGS = (5, 11)
"""How many things are in a picture, at least and at most."""
LETTERS = string.ascii_letters * 2 + string.digits + ".,:;!?-&()%"

Colour = tuple[int, int, int]
Thing = Callable[[ImageDraw.ImageDraw, int, int, np.random.Generator], None]


def colour(rng: np.random.Generator, low: int = 0, high: int = 255) -> Colour:
    """Mostly muted: a grey with a tint, at times a plain colour."""
    spread = 20 if rng.random() < 0.7 else 120
    r, g, b = (int(v) for v in np.clip(rng.integers(low, high + 1) + rng.integers(-spread, spread + 1, 3), 0, 255))
    return r, g, b


def pair(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Two colours that differ in light: what is drawn, and what it is drawn on."""
    dark, light = colour(rng, 0, 90), colour(rng, 150, 255)
    return (dark, light) if rng.random() < 0.5 else (light, dark)


@lru_cache
def fonts() -> list[Path]:
    """Upright and slanted text fonts that come with matplotlib; none where it is missing."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return []
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(
        f for f in folder.glob("*.ttf") if f.name.startswith(("DejaVuS", "STIXGeneral", "cmr", "cmss", "cmb", "cmtt"))
    )


def write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], size: int, count: int, fill: Colour, rng: np.random.Generator
) -> None:
    """A line of ``count`` random characters in words, ``size`` pixels high."""
    found = fonts()
    font = (
        ImageFont.truetype(str(found[int(rng.integers(len(found)))]), size) if found else ImageFont.load_default(size)
    )
    letters = [LETTERS[int(i)] for i in rng.integers(len(LETTERS), size=count)]
    for i in np.cumsum(rng.integers(3, 9, count)):
        if i < count:
            letters[int(i)] = " "
    text = "".join(letters)
    draw.text(at, text.upper() if rng.random() < 0.3 else text, fill=fill, font=font)


def front(draw: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator) -> None:
    """Rows of windows with frames and bars."""
    wall, frame, pane = colour(rng, 60, 230), colour(rng, 180, 255), colour(rng, 10, 110)
    draw.rectangle((0, 0, w, h), fill=wall)
    step_x, step_y = int(w / rng.integers(4, 18)), int(h / rng.integers(3, 14))
    bars, line = int(rng.integers(0, 4)), max(2, int(step_x * rng.uniform(0.02, 0.08)))
    for y in range(step_y // 5, h, step_y):
        draw.line((0, y - step_y // 8, w, y - step_y // 8), fill=colour(rng, 40, 200), width=line)
        for x in range(step_x // 5, w, step_x):
            box = x, y, x + int(step_x * 0.62), y + int(step_y * 0.66)
            draw.rectangle(box, fill=pane, outline=frame, width=line)
            for k in range(1, bars + 1):
                at = box[0] + (box[2] - box[0]) * k // (bars + 1)
                draw.line((at, box[1], at, box[3]), fill=frame, width=line)


def sign(draw: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator) -> None:
    """Some lines of large text on one colour, with a border."""
    text, ground = pair(rng)
    draw.rectangle((0, 0, w, h), fill=ground, outline=text, width=max(3, w // int(rng.integers(40, 120))))
    lines = int(rng.integers(1, 5))
    size = int(h / lines * rng.uniform(0.4, 0.7))
    for k in range(lines):
        write(draw, (w // 16, h * k // lines + size // 4), size, int(rng.integers(4, 14)), text, rng)


def page(draw: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator) -> None:
    """Many lines of small text, and a rule or two."""
    text, ground = pair(rng) if rng.random() < 0.3 else (colour(rng, 0, 60), colour(rng, 215, 255))
    draw.rectangle((0, 0, w, h), fill=ground)
    size = int(rng.integers(9, 26)) * FINE
    for y in range(size, h - size, int(size * rng.uniform(1.2, 1.8))):
        write(draw, (w // 20, y), size, max(8, int(w / size * 1.6)), text, rng)
        if rng.random() < 0.1:
            draw.line((w // 20, y, w - w // 20, y), fill=text, width=FINE)


def fence(draw: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator) -> None:
    """Parallel bars, evenly spaced, with rails across; what is between them stays as it is."""
    fill, step = colour(rng), int(rng.integers(4, 40)) * FINE
    width = max(FINE, int(step * rng.uniform(0.15, 0.6)))
    for x in range(0, w, step):
        draw.line((x, 0, x, h), fill=fill, width=width)
    for y in rng.integers(0, h, int(rng.integers(1, 4))):
        draw.line((0, int(y), w, int(y)), fill=fill, width=width)


def stripes(draw: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator) -> None:
    """Bands of two colours, or a chequer."""
    one, other = pair(rng)
    draw.rectangle((0, 0, w, h), fill=one)
    step, chequer = int(rng.integers(3, 60)) * FINE, rng.random() < 0.4
    for row, y in enumerate(range(0, h, step)):
        for x in range(step * (row % 2), w, 2 * step) if chequer else ((0,) if row % 2 else ()):
            draw.rectangle((x, y, x + step if chequer else w, y + step), fill=other)


def bricks(draw: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator) -> None:
    """Bricks or tiles, each of its own shade."""
    base, high = np.array(colour(rng, 60, 200)), int(rng.integers(6, 30)) * FINE
    wide, joint = int(high * rng.uniform(1, 3.5)), max(FINE, int(high * 0.1))
    draw.rectangle((0, 0, w, h), fill=colour(rng, 90, 220))
    for row, y in enumerate(range(0, h, high)):
        for x in range(-(row % 2) * wide // 2, w, wide):
            r, g, b = (int(v) for v in np.clip(base + rng.integers(-25, 26), 0, 255))
            draw.rectangle((x, y, x + wide - joint, y + high - joint), fill=(r, g, b))


def wheel(draw: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator) -> None:
    """Rings and spokes."""
    one, other = pair(rng)
    radius, spokes, line = min(w, h) // 2 - 4, int(rng.integers(4, 25)), int(rng.integers(2, 12)) * FINE
    draw.ellipse(
        (w // 2 - radius, h // 2 - radius, w // 2 + radius, h // 2 + radius), fill=one, outline=other, width=3 * line
    )
    for angle in np.arange(spokes) * 2 * np.pi / spokes + rng.uniform(0, 1):
        end = w // 2 + int(radius * np.cos(angle)), h // 2 + int(radius * np.sin(angle))
        draw.line((w // 2, h // 2, *end), fill=other, width=line)
    inner = radius // int(rng.integers(3, 7))
    draw.ellipse((w // 2 - inner, h // 2 - inner, w // 2 + inner, h // 2 + inner), fill=other, outline=one, width=line)


THINGS_DRAWN: tuple[Thing, ...] = (front, front, sign, sign, page, fence, stripes, bricks, wheel)


def slanted(thing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same seen at a slant and turned, ``(WIDTH, HEIGHT) * FINE`` with the rest transparent."""
    w, h = thing.size
    around = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2 * rng.uniform(0.85, 1.15, (4, 2))
    angle = rng.normal(0, 0.15) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
    turned = around @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    seen = turned + rng.uniform(0.1, 0.9, 2) * (WIDTH * FINE, HEIGHT * FINE)
    rows, right = [], []
    for (x, y), (u, v) in zip(seen, [(0, 0), (w, 0), (w, h), (0, h)], strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    found = np.linalg.solve(np.array(rows), np.array(right))
    size = WIDTH * FINE, HEIGHT * FINE
    return thing.transform(size, Image.Transform.PERSPECTIVE, tuple(found), Image.Resampling.BILINEAR)


def lit(layer: Image.Image, photo: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Light that changes over the thing, and a little of a photograph's texture, so that no area is one value."""
    pixels = np.asarray(layer).astype(np.float32)
    down, right = np.meshgrid(np.linspace(-1, 1, pixels.shape[0]), np.linspace(-1, 1, pixels.shape[1]), indexing="ij")
    slope = rng.normal(0, 0.25, 2)
    light = 1 + slope[0] * down + slope[1] * right
    gray = photo.mean(2)
    texture = 1 + float(rng.uniform(0, 0.5)) * (gray / max(1.0, gray.mean()) - 1)
    pixels[..., :3] *= (light * texture)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")


def picture(photos: Sequence[Path], rng: np.random.Generator) -> Image.Image:
    """``(WIDTH, HEIGHT)``: a photograph with some things in it."""
    size = WIDTH * FINE, HEIGHT * FINE
    behind, texture = (
        Image.open(photos[int(rng.integers(len(photos)))]).convert("RGB").resize(size, Image.Resampling.BILINEAR)
        if photos
        else Image.new("RGB", size, colour(rng, 40, 220))
        for _ in range(2)
    )
    if rng.random() < 0.5:
        behind = behind.filter(ImageFilter.BoxBlur(int(rng.integers(4, 16))))
    grain = np.asarray(texture)
    for _ in range(int(rng.integers(THINGS[0], THINGS[1] + 1))):
        w, h = (int(v) * FINE for v in rng.integers((200, 160), (900, 640)))
        thing = Image.new("RGBA", (w, h), (0, 0, 0, 0))
        THINGS_DRAWN[int(rng.integers(len(THINGS_DRAWN)))](ImageDraw.Draw(thing), w, h, rng)
        layer = lit(slanted(thing, rng), grain, rng)
        behind.paste(layer, (0, 0), layer)
    draw = ImageDraw.Draw(behind)
    for _ in range(int(rng.integers(0, 7))):  # wires, from side to side
        ends = rng.integers(0, size[1], 3)
        x = np.linspace(0, size[0], 60)
        y = np.interp(x, [0, size[0]], ends[:2]) + 4 * (ends[2] - size[1] / 2) / 6 * (x / size[0]) * (1 - x / size[0])
        draw.line(
            [(float(a), float(b)) for a, b in zip(x, y, strict=True)],
            fill=colour(rng),
            width=int(rng.integers(1, 5)) * FINE,
        )
    return behind.reduce(FINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="*.jpg to draw on (default: plain colours)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    photos = (
        [] if args.photos is None else sorted(f for f in args.photos.glob("*.jpg") if not f.name.startswith("drawn_"))
    )
    for number in range(args.count):
        made = picture(photos, np.random.default_rng((args.seed, number)))
        made.save(args.out / f"drawn_{number:04d}.jpg", quality=92)


if __name__ == "__main__":
    main()
