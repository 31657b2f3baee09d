"""Red-black trees that a hostile guest has bent (synthetic), and environments with holes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.environment import _entries
from virtintrospect.guests.linux.rbtree import MAX_HEIGHT, walk_rbtree
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

BASE = 0xFFFF_8880_0000_0000
SIZE = 1 << 16
#: struct rb_node: the parent's address and colour, then right, then left.
RIGHT, LEFT = 8, 16


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(SIZE)


@pytest.fixture
def guest(memory: BuiltMemory) -> Any:
    linear = LinearRange(BASE, BASE + SIZE, 0)
    offsets = {"rb_left": LEFT, "rb_right": RIGHT}
    return SimpleNamespace(
        kernel=AddressSpace(memory, X86_64_4LEVEL, 0, linear=[linear]),
        types=SimpleNamespace(offsetof=lambda _, member: offsets[member]),
    )


def at(number: int) -> int:
    return BASE + 0x1000 + 32 * number


def link(memory: BuiltMemory, number: int, left: int | None, right: int | None) -> None:
    children = [at(child) if child is not None else 0 for child in (right, left)]
    memory.write_u64(at(number) - BASE + RIGHT, *children)


def balanced(memory: BuiltMemory, low: int, high: int) -> int | None:
    if low >= high:
        return None
    middle = (low + high) // 2
    link(memory, middle, balanced(memory, low, middle), balanced(memory, middle + 1, high))
    return middle


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_nodes_come_in_order(memory: BuiltMemory, guest: Any, count: int) -> None:
    root = balanced(memory, 0, count)
    nodes, problem = walk_rbtree(guest, 0 if root is None else at(root), Budget())
    assert nodes == [at(number) for number in range(count)]
    assert problem is None


@pytest.mark.parametrize("victim", [0, 3, 7, 14])
@pytest.mark.parametrize("side", [LEFT, RIGHT])
@pytest.mark.parametrize("target", [0, 7, 14])
def test_cycles(memory: BuiltMemory, guest: Any, victim: int, side: int, target: int) -> None:
    root = balanced(memory, 0, 15)
    assert root == 7
    memory.write_u64(at(victim) - BASE + side, at(target))
    nodes, problem = walk_rbtree(guest, at(root), Budget())
    assert at(root) in nodes
    assert len(nodes) == len(set(nodes)) <= 15
    if target == 7:
        assert problem is not None


def test_unreadable_child(memory: BuiltMemory, guest: Any) -> None:
    root = balanced(memory, 0, 15)
    assert root is not None
    memory.write_u64(at(3) - BASE + LEFT, 0xDEAD_BEEF_0000)
    nodes, problem = walk_rbtree(guest, at(root), Budget())
    assert nodes == [at(number) for number in range(3, 15)]
    assert problem is not None
    assert problem.address == 0xDEAD_BEEF_0000


def test_a_tree_that_is_a_list(memory: BuiltMemory, guest: Any) -> None:
    for number in range(200):
        link(memory, number, None, number + 1)
    nodes, problem = walk_rbtree(guest, at(0), Budget())
    assert nodes == [at(number) for number in range(MAX_HEIGHT)]
    assert problem is not None


def test_budget_ends_the_walk(memory: BuiltMemory, guest: Any) -> None:
    root = balanced(memory, 0, 1000)
    assert root is not None
    budget = Budget(entries=10)
    assert len(walk_rbtree(guest, at(root), budget).nodes) <= 10
    assert budget.problem is not None


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([(0x1000, b"A=1\0B=2\0")], [b"A=1", b"B=2"]),
        ([(0x1000, b"A=1\0B="), (0x1006, b"2\0")], [b"A=1", b"B=2"]),
        ([(0x1000, b"A=1\0B=cut"), (0x3000, b"lost\0C=3\0")], [b"A=1", b"B=cut", b"C=3"]),
        ([(0x2000, b"lost\0C=3\0")], [b"C=3"]),
        ([(0x2000, b"lost"), (0x2004, b"lost, too\0C=3\0")], [b"C=3"]),
        ([], []),
    ],
)
def test_environment_with_holes(pieces: list[tuple[int, bytes]], expected: list[bytes]) -> None:
    assert [entry for entry in _entries(pieces, 0x1000) if entry] == expected
