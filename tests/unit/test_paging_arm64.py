"""Translation in AArch64 tables (synthetic: one entry of each kind)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import walk
from virtintrospect.arch.arm64 import aarch64
from virtintrospect.arch.paging import NOT_MAPPED, translate_many, translator

GRANULES = [
    (12, 39),
    (12, 48),
    (12, 52),
    (14, 47),
    (14, 48),
    (14, 52),
    (16, 42),
    (16, 48),
    (16, 52),
]


@pytest.mark.parametrize(("shift", "bits"), GRANULES)
@pytest.mark.parametrize("end", ["page", "block", "high", "absent", "self"])
def test_every_granule(shift: int, bits: int, end: str) -> None:
    memory, mode = BuiltMemory(1 << 20), aarch64(shift, bits)
    vaddr = (1 << 64) - (1 << bits) + 0x123
    tables = [(1 + number) << 16 for number in range(len(mode.levels))]
    stop = len(mode.levels) - (2 if end == "block" else 1)
    for level, table, onward in zip(mode.levels, tables, [*tables[1:], 0], strict=True):
        index = (vaddr >> level.shift) & ((1 << level.bits) - 1)
        memory.write(table + 8 * index, (onward | 3).to_bytes(8, "little"))
    level = mode.levels[stop]
    index = (vaddr >> level.shift) & ((1 << level.bits) - 1)
    paddr, entry = 1 << level.shift, 1 << level.shift | (1 if end == "block" else 3)
    if end == "high" and level.forms[0].scattered:
        mask, left = level.forms[0].scattered[0]
        paddr, entry = paddr | mask << left, entry | mask
    if end == "absent":
        entry &= ~1
    if end == "self":
        paddr, entry = tables[stop], tables[stop] | 3
    memory.write(tables[stop] + 8 * index, entry.to_bytes(8, "little"))
    expected = None if end == "absent" else paddr + 0x123
    told = walk(memory, mode, tables[0], vaddr)
    assert told.paddr == expected
    assert told.writable == (expected is not None)
    assert not told.user
    fast = translator(memory.read_u64, mode)(tables[0], vaddr)
    assert fast == ((-1, 0) if expected is None else (expected, 1 << level.shift))
    bulk = translate_many(memory, mode, tables[0], np.array([vaddr, 1 << 60], dtype=np.uint64))
    assert bulk.tolist() == [NOT_MAPPED if expected is None else expected, NOT_MAPPED]


@pytest.mark.parametrize(
    ("bits", "writable", "user", "executable"),
    [
        (1 << 54, True, False, True),  # kernel: may execute what programs may not
        (1 << 53, True, False, False),
        (1 << 53 | 1 << 6, True, True, True),  # a program's code: not for the kernel
        (1 << 54 | 1 << 53 | 1 << 6 | 1 << 7, False, True, False),
    ],
)
def test_rights(bits: int, writable: bool, user: bool, executable: bool) -> None:
    memory, mode = BuiltMemory(1 << 20), aarch64(12, 39)
    for table in (0x1000, 0x2000):
        memory.write_u64(table, table + 0x1000 | 3)
    memory.write_u64(0x3000, 0x8000 | bits | 3)
    told = walk(memory, mode, 0x1000, 0)
    assert told.paddr == 0x8000
    assert (told.writable, told.user, told.executable) == (writable, user, executable)


def test_each_half_has_its_own_table() -> None:
    """An address of the other half is none, whatever the table holds at its index."""
    memory, mode = BuiltMemory(1 << 20), aarch64(12, 39)
    for table in (0x1000, 0x2000):
        memory.write_u64(table, table + 0x1000 | 3)
    memory.write_u64(0x3000, 0x8000 | 3)
    low, high = 0, (1 << 64) - (1 << 39)
    for half, served, other in (("low", low, high), ("high", high, low)):
        one = mode._replace(low=half == "low", high=half == "high")
        assert walk(memory, one, 0x1000, served).paddr == 0x8000
        assert walk(memory, one, 0x1000, other).paddr is None
        addresses = np.array([served, other], dtype=np.uint64)
        assert translate_many(memory, one, 0x1000, addresses).tolist() == [0x8000, NOT_MAPPED]
        fast = translator(memory.read_u64, one)
        assert (fast(0x1000, served)[0], fast(0x1000, other)[0]) == (0x8000, -1)
