"""Translation in RISC-V tables (synthetic: one entry of each kind)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import PagingMode, walk
from virtintrospect.arch.paging import NOT_MAPPED, translate_many, translator
from virtintrospect.arch.riscv import SV39, SV48, SV57

VADDR = 0xFFFF_FFFF_8000_5123


@pytest.mark.parametrize("mode", [SV39, SV48, SV57], ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    ("above", "entry", "paddr", "size"),
    [
        (0, 0x8765 << 10 | 0xCF, 0x876_5123, 1 << 12),
        (0, 0x8765 << 10 | 0x9, 0x876_5123, 1 << 12),  # executable only
        (1, 0x8600 << 10 | 0xC7, 0x860_5123, 1 << 21),
        (0, 1 << 63 | 0x8768 << 10 | 0xC7, 0x876_5123, 1 << 16),
        (1, 0x8601 << 10 | 0xC7, None, 0),  # misaligned
        (0, 0x8765 << 10 | 0x5, None, 0),  # written, not read
        (0, 1 << 54 | 0x8765 << 10 | 0xCF, None, 0),  # reserved
        (0, 0x8765 << 10 | 0x1, None, 0),  # a table below the last level
        (0, 0x8765 << 10 | 0xCE, None, 0),
    ],
)
def test_entries(mode: PagingMode, above: int, entry: int, paddr: int | None, size: int) -> None:
    memory = BuiltMemory(1 << 20)
    last = len(mode.levels) - 1 - above
    for number, level in enumerate(mode.levels[: last + 1]):
        slot = (1 + number << 12) + 8 * (VADDR >> level.shift & 511)
        memory.write_u64(slot, entry if number == last else (2 + number) << 10 | 1)
    told = walk(memory, mode, 0x1000, VADDR)
    assert (told.paddr, told.page_size) == (paddr, size)
    assert told.executable == (paddr is not None and bool(entry & 8))
    assert told.writable == (paddr is not None and bool(entry & 4))
    fast = translator(memory.read_u64, mode)(0x1000, VADDR)
    assert fast == ((-1, 0) if paddr is None else (paddr, size))
    bulk = translate_many(memory, mode, 0x1000, np.array([VADDR, 1 << 60], dtype=np.uint64))
    assert bulk.tolist() == [NOT_MAPPED if paddr is None else paddr, NOT_MAPPED]
