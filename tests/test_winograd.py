"""Winograd's products in time against convolutions as they stand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oasis_core.model.decoders.winograd import Form, P, Q, kernels, matrices


@pytest.mark.parametrize("group", [2, 4])
def test_products_give_the_filtered_frames(group: int) -> None:
    a, g, b = matrices(group)
    assert abs(P * Q - 1) < 1e-12
    frames, taps = torch.randn(group + 2, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    expected = torch.stack([(frames[i : i + 3] * taps).sum(0) for i in range(group)])
    torch.testing.assert_close(a @ ((g @ taps) * (b @ frames)), expected, atol=1e-12, rtol=1e-12)


def by_products(form: Form, frames: Tensor, weight: Tensor) -> Tensor:
    """A convolution of ``(C, T, H, W)`` behind two frames."""
    a, _, b = (m.to(frames) for m in matrices(form.group))
    groups = []
    for start in range(0, frames.shape[1] - 2, form.group):
        sums = torch.tensordot(b, frames[:, start : start + form.group + 2].movedim(1, 0), dims=1)
        pairs = zip(sums, kernels(weight, form, weight.dtype), strict=True)
        products = [F.conv2d(u[None], w, padding=1)[0] for u, w in pairs]
        groups.append(torch.tensordot(a, torch.stack(products), dims=1))
    return torch.cat(groups).movedim(0, 1)


@pytest.mark.parametrize(("form", "length"), [(Form.PAIRS, 2), (Form.PAIRS, 6), (Form.FOURS, 4), (Form.FOURS, 8)])
def test_convolutions_by_products(form: Form, length: int) -> None:
    torch.manual_seed(0)
    frames, weight = torch.randn(6, 2 + length, 5, 4), torch.randn(7, 6, 3, 3, 3)
    expected = F.conv3d(frames[None], weight, padding=(0, 1, 1))[0]
    assert len(kernels(weight, form, weight.dtype)) == form.products == form.group + 2
    assert (by_products(form, frames, weight) - expected).abs().max() < 1e-5 * expected.std()


def test_the_first_frame_and_no_products() -> None:
    torch.manual_seed(0)
    frame, weight = torch.randn(1, 6, 1, 5, 4), torch.randn(7, 6, 3, 3, 3)
    expected = F.conv3d(F.pad(frame, (0, 0, 0, 0, 2, 0)), weight, padding=(0, 1, 1))[:, :, 0]
    (last,) = kernels(weight, Form.FIRST, torch.float32)
    assert (F.conv2d(frame[:, :, 0], last, padding=1) - expected).abs().max() < 1e-6 * expected.std()
    (whole,) = kernels(weight, Form.JOINED, torch.float64)
    assert torch.equal(whole, weight.double())


@pytest.mark.parametrize(
    ("frames", "before", "form"),
    [
        (1, False, Form.FIRST), (1, True, Form.JOINED), (2, True, Form.PAIRS), (3, True, Form.JOINED),
        (4, True, Form.FOURS), (6, True, Form.PAIRS), (8, True, Form.FOURS), (2, False, Form.PAIRS),
    ],
)  # fmt: skip
def test_the_form_with_the_least_work(frames: int, before: bool, form: Form) -> None:
    assert Form.of(frames, before) is form
    assert frames % form.group == 0


def test_other_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="must be 2 or 4"):
        matrices(3)
