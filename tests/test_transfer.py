"""Frames on their way to the device."""

from __future__ import annotations

import pytest
import torch

from oasis_core.frame_groups import frame_groups
from oasis_core.transfer import sent_together


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_parts_arrive_one_after_the_other(device: str) -> None:
    frames = torch.rand(7, 5, 6, 4)
    for given in (frames, frames[..., :3], frames.half(), frames.to(device)):
        for sizes in ((7,), (1, 4, 2), (1,) * 7):
            there = sent_together(given.split(sizes), torch.device(device))
            assert (there.device.type, there.dtype) == (device, given.dtype)
            assert torch.equal(there.cpu(), given.cpu())


@pytest.mark.parametrize("factor", [1, 4])
def test_groups_hold_their_frames(factor: int) -> None:
    frames = torch.rand(1 + 2 * factor, 5, 6, 3)
    groups = list(frame_groups(iter(frames), factor))
    assert [group.count for group in groups] == [1, factor, factor, 0]
    assert torch.equal(torch.cat([group.frames for group in groups[:-1]]), frames)
    shared = groups[1].frames.data_ptr() == frames[1].data_ptr()
    assert shared is (factor == 1)  # one frame is not copied
