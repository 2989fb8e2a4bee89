"""Number formats by device: ``auto`` takes what the device is faster in."""

from __future__ import annotations

import pytest
import torch

from oasis_core.device import choose_dtype, missing_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amx", "avx", "dtype"),
    [(True, True, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_auto_on_a_cpu(amx: bool, avx: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    assert choose_dtype("auto", CPU) is dtype
    assert (missing_bf16(CPU) is None) == (dtype is torch.bfloat16)
    assert choose_dtype("fp32", CPU) is torch.float32


def test_without_onednn_bf16_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "oneDNN" in (missing_bf16(CPU) or "")
    assert choose_dtype("auto", CPU) is torch.float32
