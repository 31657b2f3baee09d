"""Walking lists that a hostile guest has bent (synthetic)."""

from __future__ import annotations

import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

BASE = 0xFFFF_8880_0000_0000
HEAD = BASE + 0x1000
NODES = [BASE + 0x2000 + 0x100 * number for number in range(10)]


@pytest.fixture
def memory() -> BuiltMemory:
    memory = BuiltMemory(1 << 16)
    link(memory, NODES)
    return memory


def link(memory: BuiltMemory, nodes: list[int]) -> None:
    ring = [HEAD, *nodes]
    for index, node in enumerate(ring):
        following = ring[(index + 1) % len(ring)]
        memory.write_u64(node - BASE, following, ring[index - 1])


def space(memory: BuiltMemory) -> AddressSpace:
    linear = LinearRange(BASE, BASE + (1 << 16), 0)
    return AddressSpace(memory, X86_64_4LEVEL, 0, linear=[linear])


def test_whole_list(memory: BuiltMemory) -> None:
    assert walk_list(space(memory), HEAD) == (NODES, None)


def test_empty_list(memory: BuiltMemory) -> None:
    link(memory, [])
    assert walk_list(space(memory), HEAD) == ([], None)


def test_guess_is_confirmed_by_one_bulk_read(memory: BuiltMemory) -> None:
    assert walk_list(space(memory), HEAD, guess=NODES) == (NODES, None)


@pytest.mark.parametrize(
    "guess",
    [NODES[:4], NODES[:4] + NODES[5:], [*NODES, NODES[3]], [0xDEAD, *NODES], NODES[::-1]],
    ids=["short", "one missing", "too long", "unreadable", "reversed"],
)
def test_wrong_guess_changes_nothing(memory: BuiltMemory, guess: list[int]) -> None:
    assert walk_list(space(memory), HEAD, guess=guess) == (NODES, None)


def test_new_entries_are_found_behind_a_guess(memory: BuiltMemory) -> None:
    link(memory, NODES[:-1])
    old = NODES[:-1]
    link(memory, NODES)
    assert walk_list(space(memory), HEAD, guess=old) == (NODES, None)


def test_cycle_ends(memory: BuiltMemory) -> None:
    memory.write_u64(NODES[6] - BASE, NODES[2])
    nodes, problem = walk_list(space(memory), HEAD)
    assert problem is not None
    assert "cycle" in problem.what
    assert problem.address == NODES[2]
    assert nodes[:7] == NODES[:7]
    assert set(nodes) == set(NODES)  # those behind the break are reached backwards


def test_break_costs_only_what_hangs_on_it(memory: BuiltMemory) -> None:
    memory.write_u64(NODES[4] - BASE, 0xDEAD_0000)
    nodes, problem = walk_list(space(memory), HEAD)
    assert nodes == NODES
    assert problem is not None
    assert problem.address == 0xDEAD_0000


def test_break_in_both_directions(memory: BuiltMemory) -> None:
    memory.write_u64(NODES[3] - BASE, 0xDEAD_0000)
    memory.write_u64(NODES[7] - BASE + 8, 0xDEAD_0000)
    nodes, problem = walk_list(space(memory), HEAD)
    assert nodes == NODES[:4] + NODES[7:]
    assert problem is not None


def test_endless_list_is_cut(memory: BuiltMemory) -> None:
    nodes, problem = walk_list(space(memory), HEAD, limit=5)
    assert len(nodes) <= 10
    assert problem is not None
    assert "longer than 5" in problem.what


def test_unreadable_head(memory: BuiltMemory) -> None:
    nodes, problem = walk_list(space(memory), 0xDEAD_0000)
    assert nodes == []
    assert problem is not None
