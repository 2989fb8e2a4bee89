"""Routings and attention as pictures: what they show is what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oasis_core.attention import TokenGrid
from oasis_core.attention.reference import reference_attention
from oasis_core.checkpoints import resolve
from oasis_core.checkpoints.read import read_metadata
from oasis_core.cli import main
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.routing import Extent, HeadPattern, RoutingSpec
from oasis_core.routing.attention_map import attention_map, attention_picture
from oasis_core.routing.calibrated import KlTable, first_chunk
from oasis_core.routing.picture import (
    BACKGROUND,
    CELL,
    COLORS,
    GAP,
    LINE,
    MARGIN,
    OWN_COLORS,
    SIDE,
    NamedRouting,
    routing_picture,
    routing_text,
)  # fmt: skip

SAMPLE = Path(__file__).parents[1] / "assets" / "sample.mp4"
GLOBAL, FRAME, NEAR = HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW
OWN = Extent(3, None, None)
SPEC = RoutingSpec(((GLOBAL, FRAME, NEAR), (OWN, NEAR, NEAR)))
WHITE = (255, 255, 255)


def cell(picture: Image.Image, layer: int, head: int, left: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Colour in the middle of a head's cell, and of its edge."""
    x, y = left + MARGIN + SIDE + head * (CELL + GAP), MARGIN + 2 * LINE + layer * (CELL + GAP)
    return picture.getpixel((x + CELL // 2, y + CELL // 2)), picture.getpixel((x, y))


def test_every_head_has_its_patterns_colour() -> None:
    picture = routing_picture([NamedRouting("plain", SPEC)])
    colors = {**COLORS, OWN: OWN_COLORS[0]}
    for i, layer in enumerate(SPEC.layers):
        for n, pattern in enumerate(layer):
            assert cell(picture, i, n) == (colors[pattern],) * 2


def test_the_shade_grows_with_what_localising_loses() -> None:
    kl = KlTable((FRAME, NEAR), (((1.0,) * 3,) * 2, ((0.0, 0.5, 2.0), (4.0, 0.0, 4.0))), (((0.0,) * 3,) * 2,) * 2)
    picture = routing_picture([NamedRouting("shaded", RoutingSpec.uniform(2, 3, NEAR), kl)])

    def brightness(layer: int, head: int) -> float:
        return sum(abs(a - b) for a, b in zip(cell(picture, layer, head)[0], BACKGROUND, strict=True))

    order = [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert sorted(order, key=lambda place: brightness(*place)) == order
    assert cell(picture, 1, 0)[0] == cell(picture, 1, 2)[0] == COLORS[NEAR]
    assert cell(picture, 0, 0) == cell(picture, 1, 1)


def test_heads_that_differ_are_framed_and_counted() -> None:
    other = RoutingSpec(((GLOBAL, GLOBAL, NEAR), (Extent(3, None, None), NEAR, Extent(3, 5, 7))))
    shown = [NamedRouting("one", SPEC), NamedRouting("two", other)]
    picture = routing_picture(shown)
    for left in (0, picture.width // 2):
        framed = {(i, n) for i in range(2) for n in range(3) if cell(picture, i, n, left)[1] == WHITE}
        assert framed == {(0, 1), (1, 2)}
    text = routing_text(shown)
    assert "2 of 6 heads differ" in text
    assert "    0  G i W" in text
    assert "    0  G g W" in text
    wide = NamedRouting("wide", RoutingSpec(SPEC.layers, (3, 7, 7)))  # the same words mean another window
    assert routing_text([NamedRouting("one", SPEC), wide]).endswith("3 of 6 heads differ (lower case)")


def test_the_text_says_shares_and_cost() -> None:
    text = routing_text([NamedRouting("plain", SPEC, sizes=(2, 3, 4))])
    assert text.splitlines()[:4] == ["plain", "layer  heads", "    0  G I W", "    1  A W W"]
    assert "G global: 16.7%" in text
    assert "W window 3x5x5: 50.0%" in text
    assert "A 3xallxall: 16.7%" in text
    assert f"attention {SPEC.cost((2, 3, 4)):.1%} of dense at 2x3x4 tokens" in text
    assert "\x1b[48;2;0;158;115m" in routing_text([NamedRouting("plain", SPEC)], color=True)


def test_no_line_of_text_is_cut_off() -> None:
    """Whatever is written ends before the right margin."""
    kl = KlTable((NEAR,), (((1.0,),),), (((0.0,),),))
    small = RoutingSpec(((NEAR,),))
    one, long = NamedRouting("a", small, kl), NamedRouting("a long name of a file, " * 5, small)
    for shown in ([one], [long], [one, one]):
        pixels = np.asarray(routing_picture(shown))
        assert (pixels[:, -MARGIN // 2 :] == BACKGROUND).all()


def test_what_cannot_be_shown_is_refused() -> None:
    one = NamedRouting("one", SPEC)
    for shown in ([], [one] * 3):
        with pytest.raises(ValueError, match="give one or two"):
            routing_picture(shown)
    other = NamedRouting("other", RoutingSpec.uniform(2, 4, NEAR))
    with pytest.raises(ValueError, match="one has 2 layers x 3 heads, other 2 x 4"):
        routing_text([one, other])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "r.json", tmp_path / "r.png"
    path.write_text(SPEC.to_json())
    assert main(["routing", "show", str(path), str(path), "-o", str(out), "--grid", "2x3x4"]) == 0
    text = capsys.readouterr().out
    assert "0 of 6 heads differ" in text
    assert "at 2x3x4 tokens" in text
    assert Image.open(out).size == routing_picture([NamedRouting("r.json", SPEC, sizes=(2, 3, 4))] * 2).size
    assert main(["routing", "show", "oasis-tiny"]) == 0
    assert "    7  " in capsys.readouterr().out
    for argv, message in (
        ([path, "oasis-tiny"], "routings of different models cannot be compared"),
        ([tmp_path / "none.json"], "routing file not found"),
        (["none"], "no embedded model is named 'none'"),
        ([SAMPLE], "is not a readable safetensors file"),
        ([path, "-o", tmp_path / "r.jpg"], "give a name that ends in .png or .json"),
        ([path, "-o", path], "r.json exists already; give another name"),
        ([path, path, "-o", tmp_path / "two.json"], "two.json would hold one routing and two are given"),
        ([path, "-o", tmp_path / "none" / "r.json"], "does not exist; create it first"),
        ([path, "--grid", "2x3"], "token grid is '2x3'"),
    ):
        assert main(["routing", "show", *map(str, argv)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["oasis-tiny", "file"])
def test_a_routing_is_written_as_a_file_that_can_be_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path, out = tmp_path / "r.json", tmp_path / "out.json"
    path.write_text(SPEC.to_json())
    assert main(["routing", "show", str(path) if name == "file" else name, "-o", str(out)]) == 0
    expected = SPEC if name == "file" else read_metadata(resolve(name)).routing
    assert RoutingSpec.from_file(out) == expected
    assert len(out.read_text().splitlines()) == len(expected.layers) + 2  # one for each layer, to be edited


# Attention of one token.


def upscaler(routing: RoutingSpec, group: int = 1) -> Upscaler:
    config = OasisConfig(
        name="random", unshuffle=(group, 8, 8), latent_channels=4, dim=24, depth=2, heads=3, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = OasisModel(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return Upscaler(model, routing, UpscaleSettings(scale=2.0, chunk_frames=5, scene_cuts=False))


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("head", range(3))
@pytest.mark.parametrize("layer", range(2))
def test_an_attention_map_is_a_row_of_the_attention(layer: int, head: int, group: int) -> None:
    up = upscaler(SPEC, group)
    frames = torch.rand(5, 32, 40, 3)
    found = attention_map(up, frames, layer, head, at=0.5, y=0.99, x=0.0)
    t = 5 if group == 1 else 2
    assert found.weights.shape == (t, 4, 5)
    assert found.token == (t // 2, 3, 0)
    assert found.frames.shape == (t, 64, 80, 3)
    seen: list[torch.Tensor] = []

    def observe(number: int, q: torch.Tensor, k: torch.Tensor, grid: TokenGrid) -> None:
        if number == layer:  # values that are the keys' own numbers give the attention matrix
            v = torch.eye(grid.length)[None, :, None].expand(1, -1, 3, -1)
            at = slice(head, head + 1)
            seen.append(
                reference_attention(q[:, :, at], k[:, :, at], v[:, :, at], grid, SPEC.layers[layer][head], (3, 5, 5))[0]
            )

    with torch.no_grad():
        up.model.dit(up.model.encode(first_chunk(up, frames)), SPEC, observe=observe)
    row = seen[0][0, (found.token[0] * 4 + 3) * 5, 0]
    torch.testing.assert_close(found.weights.flatten(), row, atol=1e-5, rtol=1e-4)


def test_the_attention_picture_shows_the_place() -> None:
    found = attention_map(upscaler(SPEC), torch.rand(5, 32, 40, 3), 0, 1)
    picture = attention_picture(found)
    assert WHITE in set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))
    assert found.weights[found.token[0]].sum() == pytest.approx(1)  # intra-frame
    for place, message in (({"layer": 2}, "layer is 2; this model has 2: give 0 to 1"), ({"head": -1}, "head is -1"),
                           ({"x": 1.5}, "token x is 1.5"), ({"at": -0.1}, "token time is -0.1")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            attention_map(upscaler(SPEC), torch.rand(1, 32, 40, 3), **{"layer": 0, "head": 0, **place})  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_attention_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    command = ["routing", "attention", "oasis-tiny", str(SAMPLE), "-o", str(out), "--chunk", "1", "--scale", "1"]
    assert main([*command, "--device", "cpu", "--layer", "1", "--head", "2"]) == 0
    assert "token (0, " in capsys.readouterr().out
    assert Image.open(out).width > 300
