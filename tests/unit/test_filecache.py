"""How often pages of the cache were used, by bits of which no table says where they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from virtintrospect.guests.linux import filecache

#: Bits of enum pageflags as Debian's 6.12 has them.
BITS = {
    "PG_referenced": 2, "PG_lru": 5, "PG_active": 8, "PG_workingset": 9, "PG_unevictable": 18,
    "__NR_PAGEFLAGS": 23,
}  # fmt: skip
GUEST = cast(Any, SimpleNamespace(types=SimpleNamespace(enumerators=lambda _: BITS)))
LRU, REFERENCED = 1 << 5, 1 << 2
#: Node, zone and last CPU of any page; as seen in a guest of 6.12.
PLACE = 0xFFFFFC0000000
ONCE, TWICE, OFTEN = (0xFFFFFD0000000, 0xFFFFFD2000000, 0xFFFFFD4000000)


def references(*flags: int) -> list[bool]:
    every = np.array([*flags, *[ONCE | LRU] * 20, *[PLACE] * 20], dtype=np.uint64)
    listed = (every & np.uint64(LRU)).astype(bool)
    found = filecache._references(GUEST, every, listed)
    return [bool(one) for one in found[: len(flags)]]


def test_counts_are_below_the_generation() -> None:
    pages = [place | LRU | REFERENCED for place in (ONCE, TWICE, OFTEN)]
    assert references(*pages) == [False, True, True]


def test_without_generations_there_are_no_counts() -> None:
    """A page on a list that has none: these bits mean something else here."""
    assert references(PLACE | LRU, TWICE | LRU) == [False, False]


def test_what_may_not_be_evicted_has_no_generation() -> None:
    assert references(TWICE | LRU, PLACE | LRU | 1 << 18) == [True, False]


def test_what_waits_for_a_list_has_no_generation_yet() -> None:
    assert references(TWICE | LRU, PLACE | REFERENCED | 1 << 25) == [True, True]


def test_a_generation_that_cannot_be() -> None:
    assert references(PLACE | 7 << 27 | LRU, TWICE | LRU) == [False, False]


def test_few_pages_make_sure_of_nothing() -> None:
    flags = np.array([TWICE | LRU, PLACE], dtype=np.uint64)
    assert not filecache._references(GUEST, flags, np.array([True, False])).any()


def test_a_flag_that_this_kernel_has_not() -> None:
    flags = np.array([0, 1 << 8], dtype=np.uint64)
    assert filecache._flag(GUEST, flags, "PG_active").tolist() == [False, True]
    assert filecache._flag(GUEST, flags, "PG_of_another").tolist() == [False, False]
