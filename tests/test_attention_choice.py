"""Which backend runs what, on GPUs that are not here: predicates are asked, kernels are stood in for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oasis_core.attention import TokenGrid, backends, flash, routed_attention, triton_here
from oasis_core.attention.backends import BACKENDS, backend_for, fastest
from oasis_core.attention.flash import VERSIONS, FlashAttention
from oasis_core.attention.problem import EVERYTHING, OWN_FRAME, Problem
from oasis_core.attention.reference import reference_attention
from oasis_core.routing import Extent, HeadPattern

GPU = torch.device("cuda")
WINDOW = Extent(3, 5, 5)
EXTENTS = (EVERYTHING, OWN_FRAME, WINDOW)
BF16, FP32 = torch.bfloat16, torch.float32


def problem(extent: Extent, dtype: torch.dtype = BF16, head_dim: int = 128, **more: bool) -> Problem:
    return Problem(TokenGrid(3, 9, 10), extent, 2, head_dim, dtype, GPU, **more)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A function that makes this a machine with a GPU of that capability and those packages."""

    def make(capability: tuple[int, int], *packages: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: "cudnn" in packages)
        monkeypatch.setattr(torch.version, "hip", None)
        for module in (triton_here, flash):
            monkeypatch.setattr(module, "installed", lambda name: name in packages)
        monkeypatch.setattr(triton_here, "cannot_start", lambda: None)
        monkeypatch.setattr(flash, "broken", lambda name: None)
        monkeypatch.setattr(backends, "cudnn_takes", lambda problem: problem.grid.length > 1)
        fresh = FlashAttention()  # which asks again what is installed
        monkeypatch.setitem(BACKENDS, "flash-attn", fresh)
        for operation, order in backends.FASTEST.items():
            new = tuple(fresh if b.name == "flash-attn" else b for b in order)
            monkeypatch.setitem(backends.FASTEST, operation, new)

    return make


FA4, FA3, FA2 = (v.module for v in VERSIONS)


@pytest.mark.parametrize(
    ("capability", "packages", "dtype", "head_dim", "taken"),
    [
        ((9, 0), ("cudnn", "triton", FA4), BF16, 128, ("flash-attn", "flash-attn", "triton")),
        ((9, 0), ("cudnn", "triton"), BF16, 32, ("cudnn", "cudnn", "triton")),
        ((9, 0), ("cudnn", "triton", FA3, FA2), BF16, 128, ("cudnn", "cudnn", "triton")),  # not verified: not taken
        ((9, 0), ("cudnn", "triton", FA4), BF16, 64, ("cudnn", "cudnn", "triton")),  # not with such heads
        ((12, 0), ("cudnn", "triton", FA4), BF16, 128, ("sdpa", "sdpa", "triton")),  # nor on such a GPU
        ((8, 6), ("cudnn", "triton"), BF16, 128, ("sdpa", "sdpa", "triton")),
        ((8, 0), ("triton", FA4, FA2), BF16, 128, ("sdpa", "sdpa", "triton")),
        ((9, 0), ("cudnn", "triton", FA4), FP32, 128, ("sdpa", "sdpa", "triton")),
        ((9, 0), ("cudnn", "triton", FA4), torch.float64, 128, ("sdpa", "sdpa", "sdpa")),
        ((9, 0), ("cudnn", "triton", FA4), BF16, 18, ("sdpa", "sdpa", "triton")),
        ((9, 0), ("cudnn", "triton", FA4), BF16, 256, ("sdpa", "sdpa", "sdpa")),
        ((7, 5), ("cudnn", "triton", FA4, FA2), torch.float16, 128, ("sdpa", "sdpa", "sdpa")),
        ((9, 0), (), BF16, 128, ("sdpa", "sdpa", "sdpa")),
    ],
)
def test_auto_takes_the_fastest_that_is_there_and_verified(  # type: ignore[no-untyped-def]
    machine, capability, packages, dtype, head_dim, taken
) -> None:
    machine(capability, *packages)
    auto = backend_for("auto", GPU, dtype, head_dim)
    assert tuple(auto.chosen(problem(e, dtype, head_dim)).name for e in EXTENTS) == taken
    assert {fastest(problem(e, dtype, head_dim, trained=True)).name for e in EXTENTS} == {"sdpa"}


def test_what_is_asked_for_is_taken_or_refused(machine) -> None:  # type: ignore[no-untyped-def]
    machine((9, 0), "cudnn", "triton", FA4)
    for name, expected in (
        ("sdpa", ("sdpa", "sdpa", "sdpa")),
        ("cudnn", ("cudnn", "cudnn", "triton")),
        ("flash-attn", ("flash-attn", "flash-attn", "triton")),
        ("triton", ("flash-attn", "flash-attn", "triton")),
    ):
        choice = backend_for(name, GPU, BF16, 128)
        assert tuple(choice.chosen(problem(e)).name for e in EXTENTS) == expected
    with pytest.raises(
        ValueError, match="attention cudnn cannot be used: it computes in bf16 or fp16, not in torch.float32"
    ):
        backend_for("cudnn", GPU, FP32, 128)
    with pytest.raises(ValueError, match="attention triton cannot be used: heads of 256 channels; it takes up to 128"):
        backend_for("triton", GPU, BF16, 256)
    with pytest.raises(ValueError, match="attention flash-attn cannot be used: its backward pass"):
        backend_for("flash-attn", GPU).chosen(problem(EVERYTHING, trained=True))
    machine((8, 9), FA4)
    with pytest.raises(
        ValueError, match="no installed FlashAttention runs on compute capability 8.9; choose sdpa or auto"
    ):
        backend_for("flash-attn", GPU)
    machine((8, 9))
    with pytest.raises(ValueError, match="pip install flash-attn-4"):
        backend_for("flash-attn", GPU)


def test_packages_that_do_not_work_are_not_taken(machine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """FlashAttention without what it needs itself, Triton without a C compiler: told where it was asked for."""
    machine((9, 0), "triton", FA4)
    monkeypatch.setattr(flash, "broken", lambda name: f"{name} is broken")
    monkeypatch.setattr(triton_here, "cannot_start", lambda: "Triton does not start")
    assert {fastest(problem(e)).name for e in EXTENTS} == {"sdpa"}
    with pytest.raises(ValueError, match="flash_attn.cute is broken; choose sdpa or auto"):
        backend_for("flash-attn", GPU)
    with pytest.raises(ValueError, match="Triton does not start"):
        backend_for("triton", GPU)


def test_what_broken_packages_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import cutlass_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    why = "half_installed is installed but cannot be imported (ModuleNotFoundError: No module named 'cutlass_that_is_missing')"
    assert flash.installed("half_installed")
    assert flash.broken("half_installed") == why
    assert flash.broken("json") is None
    assert not flash.installed("cutlass_that_is_missing.cute")
    (tmp_path / "for_another_cuda").mkdir()
    (tmp_path / "for_another_cuda" / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    assert not flash.installed("for_another_cuda.cute")
    monkeypatch.setitem(sys.modules, "stand_in", ModuleType("stand_in"))  # as other custom nodes leave them
    assert not flash.installed("stand_in")


def test_a_triton_that_does_not_start_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver compiles its helpers when it is first asked for anything."""

    def find_compiler() -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    driver = SimpleNamespace(active=SimpleNamespace(get_current_device=find_compiler))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "triton.runtime", SimpleNamespace(driver=driver))
    why = triton_here.cannot_start.__wrapped__()
    assert why is not None
    assert "(RuntimeError: Failed to find C compiler. Please specify via CC environment variable.)" in why
    driver.active.get_current_device = lambda: 0
    assert triton_here.cannot_start.__wrapped__() is None


def test_a_single_token(machine) -> None:  # type: ignore[no-untyped-def]
    """cuDNN takes no single key."""
    machine((9, 0), "cudnn")
    assert fastest(Problem(TokenGrid(1, 1, 1), EVERYTHING, 2, 128, BF16, GPU)).name == "sdpa"
    with pytest.raises(
        ValueError, match="attention cudnn cannot be used: this torch does not give such sizes to cuDNN"
    ):
        backend_for("cudnn", GPU).chosen(Problem(TokenGrid(1, 1, 1), EVERYTHING, 2, 128, BF16, GPU))


def test_a_gpu_of_amd_gets_what_runs_there(machine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    machine((9, 0), "cudnn", "triton", FA4)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert {fastest(problem(e)).name for e in EXTENTS} == {"sdpa"}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: str(v.number))
@pytest.mark.parametrize("as_tuple", [False, True])
def test_the_adapters_of_flash_attention(
    version: flash.Version, as_tuple: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layout and frames, with torch's attention in the place of the package's function."""

    def stand_in(q: Tensor, k: Tensor, v: Tensor) -> object:
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        return (out, None) if as_tuple else out

    for name in (version.module.rpartition(".")[0], version.module):
        if name:
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(flash_attn_func=stand_in))
    adapter = FlashAttention()
    monkeypatch.setattr(adapter, "version", lambda device: version)
    grid, g = TokenGrid(3, 4, 5), torch.Generator().manual_seed(0)
    q, k, v = torch.randn(2, grid.length, 3, 2, 8, generator=g).unbind(2)
    for extent in (EVERYTHING, OWN_FRAME):
        truth, _ = reference_attention(q, k, v, grid, extent, (3, 5, 5))
        out = torch.full((2, grid.length, 4, 8), 9.0)
        asked = Problem.of(q, k, v, grid, extent)
        torch.testing.assert_close(adapter.run(asked, q, k, v), truth, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(adapter.run(asked, q, k, v, out[:, :, 1:3]), truth, atol=2e-6, rtol=2e-6)
        assert (out[:, :, [0, 3]] == 9).all()


def test_kinds_of_heads_write_into_one_buffer() -> None:
    """Each is given the place of its heads; with gradients there is no such place."""
    grid, places = TokenGrid(2, 3, 4), []

    class Spy(backends.Sdpa):
        def run(self, problem, q, k, v, out=None):  # type: ignore[no-untyped-def]
            places.append(None if out is None else (out.untyped_storage().data_ptr(), out.storage_offset()))
            return super().run(problem, q, k, v, out)

    q = torch.randn(1, grid.length, 3, 8, generator=torch.Generator().manual_seed(0))
    patterns = (HeadPattern.GLOBAL, HeadPattern.INTRA_FRAME, HeadPattern.WINDOW)
    got = routed_attention(q, q, q, grid, patterns, (1, 3, 3), Spy())
    assert places == [(got.untyped_storage().data_ptr(), 8 * n) for n in range(3)]
    places.clear()
    with_gradients = q.clone().requires_grad_()
    assert torch.equal(routed_attention(*(with_gradients,) * 3, grid, patterns, (1, 3, 3), Spy()), got)
    assert places == [None] * 3
