"""Pictures that compare two frames."""

from __future__ import annotations

import pytest
import torch

from oasis_core.compare import LINE, CompareMode, compare_frames
from oasis_core.geometry import resize

G = torch.Generator().manual_seed(0)
AFTER, BEFORE = torch.rand(20, 30, 4, generator=G), torch.rand(5, 7, 3, generator=G)


def test_side_by_side_holds_both() -> None:
    got = compare_frames(BEFORE, AFTER, CompareMode.SIDE_BY_SIDE)
    assert got.shape == (20, 60 + LINE, 3)
    assert torch.equal(got[:, 30 + LINE :], AFTER[..., :3])
    assert torch.equal(got[:, :30], resize(BEFORE[None], 20, 30)[0].clamp(0, 1))


def test_the_wipe_goes_from_one_to_the_other() -> None:
    same_size = resize(BEFORE[None], 20, 30)[0].clamp(0, 1)
    assert torch.equal(compare_frames(BEFORE, AFTER, CompareMode.WIPE, 0.0), AFTER[..., :3])
    assert torch.equal(compare_frames(BEFORE, AFTER, CompareMode.WIPE, 1.0), same_size)
    middle = compare_frames(BEFORE, AFTER, CompareMode.WIPE, 0.5)
    assert torch.equal(middle[:, :13], same_size[:, :13])
    assert torch.equal(middle[:, 17:], AFTER[:, 17:, :3])
    assert (middle[:, 14:16] == 1).all()


def test_the_difference_is_what_it_says() -> None:
    other = AFTER.clone()
    other[3, 4, :3] = (AFTER[3, 4, :3] + 0.1).clamp(max=1)
    got = compare_frames(other, AFTER, CompareMode.DIFFERENCE, gain=5.0)
    expected = (other[3, 4, :3] - AFTER[3, 4, :3]).abs().mean() * 5
    torch.testing.assert_close(got[3, 4], expected.expand(3))
    got[3, 4] = 0
    assert not got.any()


def test_values_outside_their_range_are_told() -> None:
    with pytest.raises(ValueError, match="from 0 .all after. to 1"):
        compare_frames(BEFORE, AFTER, CompareMode.WIPE, 1.5)
    with pytest.raises(ValueError, match="gain is 0; it must be above 0"):
        compare_frames(BEFORE, AFTER, CompareMode.DIFFERENCE, gain=0)
    with pytest.raises(ValueError, match="allowed: wipe, side by side, difference"):
        CompareMode.of("blink")
