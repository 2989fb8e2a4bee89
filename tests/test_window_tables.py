"""The window kernel's tables of bits: kept while someone holds them, however many others come."""

from __future__ import annotations

import gc
import weakref

import torch

from oasis_core.attention import TokenGrid
from oasis_core.attention.window_plan import TABLES, held_tables, key_bits, plan_window

CPU = torch.device("cpu")


def table(width: int) -> torch.Tensor:
    return key_bits(plan_window(TokenGrid(3, 8, width), (3, 5, 5), 32, 32), 32, CPU)


def others() -> None:
    for keys in range(1000, 1001 + TABLES):
        key_bits(plan_window(TokenGrid(3, 8, 8), (3, 5, 5), 32, 32), keys, CPU)
    gc.collect()


def test_the_last_tables_are_kept() -> None:
    assert table(20) is table(20)


def test_a_table_that_nobody_holds_goes_after_many_others() -> None:
    seen = weakref.ref(table(21))
    assert seen() is not None
    others()
    assert seen() is None


def test_a_table_that_is_held_stays_the_same_one() -> None:
    with held_tables() as held:
        address = table(22).data_ptr()
    others()
    with held_tables() as again:
        assert table(22).data_ptr() == address
    assert [t.data_ptr() for t in held] == [t.data_ptr() for t in again] == [address]


def test_holders_inside_each_other_hold_their_own() -> None:
    with held_tables() as outer:
        table(23)
        with held_tables() as inner:
            table(24)
        table(25)
    assert (len(outer), len(inner)) == (2, 1)
    table(26)
    assert (len(outer), len(inner)) == (2, 1)
