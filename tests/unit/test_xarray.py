"""xarrays, radix trees and IDRs as the kernel lays them out, and as a hostile guest bends them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.xarray import LAST, Span, walk_spans, walk_xarray
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

BASE = 0xFFFF_8880_0000_0000
SIZE = 1 << 20
#: struct xa_node of 64-bit kernels.
SHIFT, OFFSET, SLOTS, NODE = 0, 1, 40, 576
RETRY, ZERO = 256 << 2 | 2, 257 << 2 | 2


class Builder:
    """Builds an xarray of single entries; ``nodes`` are the addresses by (shift, index)."""

    def __init__(self, memory: BuiltMemory) -> None:
        self.memory = memory
        self.nodes: dict[tuple[int, int], int] = {}

    def node(self, shift: int, index: int) -> int:
        first = index >> (shift + 6) << (shift + 6)
        address = self.nodes.get((shift, first))
        if address is None:
            address = self.nodes[shift, first] = BASE + 0x1000 + len(self.nodes) * NODE
            self.memory.write(address - BASE, bytes([shift, first >> (shift + 6) & 63]))
        return address

    def store(self, index: int, entry: int, *, height: int, shift: int = 0) -> int:
        """Store an entry at the level of ``shift``; gives ``xa_head``."""
        self.slot(self.node(shift, index), index >> shift & 63, entry)
        for level in range(shift + 6, height, 6):
            child = self.node(level - 6, index)
            self.slot(self.node(level, index), index >> level & 63, child | 2)
        return self.node(height - 6, index) | 2

    def slot(self, node: int, slot: int, entry: int) -> None:
        self.memory.write_u64(node - BASE + SLOTS + 8 * slot, entry)


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(SIZE)


@pytest.fixture
def builder(memory: BuiltMemory) -> Builder:
    return Builder(memory)


@pytest.fixture
def guest(memory: BuiltMemory) -> Any:
    linear = LinearRange(BASE, BASE + SIZE, 0)
    fields = {
        "shift": SimpleNamespace(offset=SHIFT, size=1, count=1, element_size=1),
        "offset": SimpleNamespace(offset=OFFSET, size=1, count=1, element_size=1),
        "slots": SimpleNamespace(offset=SLOTS, size=512, count=64, element_size=8),
    }
    problems: list[tuple[str, int]] = []
    return SimpleNamespace(
        kernel=AddressSpace(memory, X86_64_4LEVEL, 0, linear=[linear]),
        types=SimpleNamespace(resolve=lambda _, member: (fields[member],), pointer_size=8),
        note=lambda what, address: problems.append((what, address)),
        problems=problems,
        fields=fields,
    )


def pointer(number: int) -> int:
    return 0xFFFF_8881_0000_0000 + 8 * number


@pytest.mark.parametrize(
    ("root", "expected"),
    [(0, []), (pointer(1), [(0, pointer(1))]), (RETRY, []), (ZERO, []), (7, [])],
)
def test_without_a_node(guest: Any, root: int, expected: list[tuple[int, int]]) -> None:
    assert walk_xarray(guest, root, Budget()) == expected
    assert not guest.problems


def test_one_value_at_the_root(guest: Any) -> None:
    assert walk_xarray(guest, 7, Budget(), values=True) == [(0, 7)]


@pytest.mark.parametrize("height", [6, 12, 18, 66])
def test_entries_come_in_order(builder: Builder, guest: Any, height: int) -> None:
    indices = sorted({number * 7919 % (1 << min(height, 64)) for number in range(300)})
    root = 0
    for index in reversed(indices):
        root = builder.store(index, pointer(index), height=height)
    assert walk_xarray(guest, root, Budget()) == [(index, pointer(index)) for index in indices]
    assert not guest.problems


def test_the_highest_index(builder: Builder, guest: Any) -> None:
    root = builder.store(LAST, pointer(1), height=66)
    assert walk_xarray(guest, root, Budget()) == [(LAST, pointer(1))]


def test_marks_and_values(builder: Builder, guest: Any) -> None:
    root = builder.store(0, pointer(0), height=6)
    node = builder.node(0, 0)
    for slot, entry in enumerate((pointer(4), 0 << 2 | 2, 0 << 2 | 2, RETRY, ZERO, 9), 1):
        builder.slot(node, slot, entry)
    assert walk_xarray(guest, root, Budget()) == [(0, pointer(0)), (1, pointer(4))]
    both = walk_xarray(guest, root, Budget(), values=True)
    assert both == [(0, pointer(0)), (1, pointer(4)), (6, 9)]
    assert not guest.problems


def test_an_entry_above_the_lowest_level(builder: Builder, guest: Any) -> None:
    """One of order 6 or more is in a node whose slots span many indices."""
    builder.store(3, pointer(3), height=12)
    root = builder.store(128, pointer(128), height=12, shift=6)
    builder.slot(builder.node(6, 0), 3, 2 << 2 | 2)  # the next 64 indices belong to it, too
    assert walk_xarray(guest, root, Budget()) == [(3, pointer(3)), (128, pointer(128))]
    builder.slot(builder.node(0, 3), 4, 3 << 2 | 2)
    spans = [Span(3, 4, pointer(3)), Span(128, 255, pointer(128))]
    assert walk_spans(guest, root, Budget()) == spans


def test_up_to_an_index(builder: Builder, guest: Any) -> None:
    root = 0
    for index in range(0, 4096, 50):
        root = builder.store(index, pointer(index), height=12)
    reads = builder.memory.reads
    found = walk_xarray(guest, root, Budget(), last=100)
    assert [index for index, _ in found] == [0, 50, 100]
    assert builder.memory.reads - reads <= 4


@pytest.mark.parametrize(("at", "to"), [((6, 0), (6, 0)), ((6, 0), (12, 0)), ((0, 0), (12, 0))])
def test_cycles(builder: Builder, guest: Any, at: tuple[int, int], to: tuple[int, int]) -> None:
    root = builder.store(4000, pointer(1), height=18)
    builder.store(1, pointer(2), height=18)
    builder.slot(builder.node(*at), 5, builder.node(*to) | 2)
    assert walk_xarray(guest, root, Budget()) == [(1, pointer(2)), (4000, pointer(1))]
    assert guest.problems


def test_nodes_that_all_lead_to_one(builder: Builder, guest: Any) -> None:
    """Were each of them followed, this tree would have 64^10 leaves."""
    root = builder.store(0, pointer(1), height=66)
    for shift in range(60, 0, -6):
        for slot in range(64):
            builder.slot(builder.node(shift, 0), slot, builder.node(shift - 6, 0) | 2)
    assert walk_xarray(guest, root, Budget()) == [(0, pointer(1))]
    assert guest.problems


@pytest.mark.parametrize("shift", [1, 5, 12, 63, 66, 255])
def test_absurd_shift(builder: Builder, guest: Any, shift: int) -> None:
    root = builder.store(70, pointer(1), height=12)
    builder.memory.write(builder.node(0, 70) - BASE, bytes([shift]))
    assert walk_xarray(guest, root, Budget()) == []
    assert guest.problems == [("xarray node in the wrong place", builder.node(0, 70))]


def test_root_says_nothing_of_its_place(builder: Builder, guest: Any) -> None:
    """It has no parent; what stands there is left from whoever had the memory before."""
    root = builder.store(70, pointer(1), height=12)
    builder.memory.write(root - 2 - BASE + OFFSET, bytes([37]))
    assert walk_xarray(guest, root, Budget()) == [(70, pointer(1))]
    assert not guest.problems


@pytest.mark.parametrize("shift", [1, 5, 63, 66, 255])
def test_absurd_shift_of_the_root(builder: Builder, guest: Any, shift: int) -> None:
    root = builder.store(1, pointer(1), height=6)
    builder.memory.write(root - 2 - BASE, bytes([shift]))
    assert walk_xarray(guest, root, Budget()) == []
    assert guest.problems


def test_garbage(builder: Builder, guest: Any) -> None:
    """Slots full of node pointers that lead nowhere; what is whole is still found."""
    root = builder.store(64, pointer(1), height=12)
    for slot in range(2, 64):
        builder.slot(root - 2, slot, 0xDEAD_BEEF_0002 + (slot << 20))
    assert walk_xarray(guest, root, Budget()) == [(64, pointer(1))]
    assert {what for what, _ in guest.problems} == {"unreadable xarray node"}


def test_the_budget_ends_it(builder: Builder, guest: Any) -> None:
    root = 0
    for index in range(4096):
        root = builder.store(index, pointer(index), height=12)
    budget = Budget(entries=500)
    assert len(walk_xarray(guest, root, budget)) < 500
    assert budget.problem is not None
    assert not walk_xarray(guest, root, Budget(seconds=-1))


@pytest.mark.parametrize(
    ("field", "bent"),
    [("slots", {"count": 1 << 20}), ("slots", {"offset": 1 << 30}), ("slots", {"element_size": 4}),
     ("shift", {"size": 4}), ("offset", {"offset": 600})],
)  # fmt: skip
def test_forged_types(builder: Builder, guest: Any, field: str, bent: dict[str, int]) -> None:
    root = builder.store(1, pointer(1), height=6)
    vars(guest.fields[field]).update(bent)
    with pytest.raises(CorruptDataError):
        walk_xarray(guest, root, Budget())
