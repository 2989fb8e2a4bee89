"""A model's sizes: what cannot be is refused in one line, what can be comes back from JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from oasis_core.model import OasisConfig

from .test_model import BASE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            ({name: bad}, name)
            for name in ("dim", "depth", "heads", "ffn_dim", "freq_dim")
            for bad in (0, -4, 2.5, "8")
        ),
        ({"latent_channels": True}, "latent_channels is True"),
        ({"unshuffle": (4, 4)}, "unshuffle"),
        ({"unshuffle": [4, 4, 4]}, "unshuffle"),
        ({"unshuffle": 4}, "unshuffle"),
        ({"unshuffle": (0, 4, 4)}, "unshuffle"),
        ({"unshuffle": (1, 8, 4)}, "square cells of a multiple of 4"),
        ({"unshuffle": (1, 6, 6)}, "square cells of a multiple of 4"),
        ({"patch": (1, 2, 0)}, "patch"),
        ({"patch": (1, 1, 2)}, "patch is (1, 1, 2); its rows and columns must be equal"),
        ({"heads": 3}, "dim 32 does not split into 3 heads of an even size"),
        ({"dim": 36}, "dim 36 does not split into 4 heads of an even size"),
        ({"heads": 8}, "head size is 4; the 3D rotary embedding needs at least 6"),
        ({"freq_dim": 7}, "freq_dim is 7; it must be even"),
        ({"context_length": -1}, "context_length is -1"),
        ({"context_length": 1.5}, "context_length is 1.5"),
        ({"sigma": float("nan")}, "sigma is nan; it must be a finite number"),
        ({"sigma": None}, "sigma is None"),
        ({"timestep": float("inf")}, "timestep is inf"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
        ({"decoder": {"width": 4}}, "decoder is {'width': 4}"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below, with special characters
        replace(BASE, **change)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"width": 0}, {"hr_width": -1}, {"blocks": -1}, {"hr_blocks": 1.0}, {"width": "4"}])
def test_decoder_sizes_that_cannot_be_are_refused(change: dict[str, int]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=rf"^decoder {name} is .*; it must be a whole number of at least [01]$"):
        replace(BASE.decoder, **change)


@pytest.mark.parametrize(
    "config", [BASE, OasisConfig(name="wan"), replace(BASE, context_length=5, timestep=3, sigma=-1)]
)
def test_config_round_trip_through_json(config: OasisConfig) -> None:
    again = OasisConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_config_from_a_dict_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^model config has unknown fields \['zoom'\]"):
        OasisConfig.from_dict(BASE.to_dict() | {"zoom": 3})
    with pytest.raises(ValueError, match=r"^model config is not usable: .*name"):
        OasisConfig.from_dict({})
    with pytest.raises(ValueError, match=r"^decoder width is 0"):
        OasisConfig.from_dict(BASE.to_dict() | {"decoder": {"width": 0}})


def test_derived_sizes() -> None:
    config = OasisConfig(name="wan")
    assert (config.head_dim, config.pixel_multiple, config.frame_group) == (128, (16, 16), 4)
    assert (BASE.head_dim, BASE.pixel_multiple, BASE.frame_group) == (8, (8, 8), 4)
