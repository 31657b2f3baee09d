"""Linked lists of the kernel (include/linux/list.h), walked without trusting them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.model import Problem
from virtintrospect.space import AddressSpace

#: Most entries of a list that a table shows. Linux allows 4 Mi tasks (PID_MAX_LIMIT,
#: include/linux/threads.h), but a row costs some 4 KiB of host memory while it is made.
LIMIT = 1 << 17
#: Entries between two looks at the clock.
_STRIDE = 4096


class ListWalk(NamedTuple):
    """Addresses of the ``list_head`` nodes, the head excluded, and what ended the walk early."""

    nodes: list[int]
    problem: Problem | None


def walk_list(
    space: AddressSpace,
    head: int,
    *,
    guess: Sequence[int] = (),
    limit: int = LIMIT,
    budget: Budget | None = None,
) -> ListWalk:
    """Follow ``next`` from a ``struct list_head`` until it comes back to ``head``.

    :param guess: nodes that an earlier walk found. All their ``next`` pointers are read in one
        go; as far as they still chain up, no pointer needs to be followed one by one. What is
        returned always comes from memory as it is now.
    :param limit: most entries that such a list can have.
    :param budget: what is left for the table that wants it; its own where not given.
    :returns: the nodes; on a broken list those before the break *and*, followed backwards
        through ``prev``, those behind it.
    """
    budget = budget or Budget()
    limit = min(limit, budget.entries)
    if limit <= 0:
        budget.follow(1)  # notes that there is no more
        return ListWalk([], None)
    try:
        nodes, current = _confirm(space, head, guess[:limit])
        problem = _follow(space, head, current, 0, nodes, limit, budget)
    except FaultError as error:
        return ListWalk([], Problem("unreadable list head", error.address))
    if problem is not None and len(nodes) < limit:
        nodes += _behind_the_break(space, head, nodes, limit, budget)
    budget.follow(len(nodes))
    return ListWalk(nodes, problem)


def _confirm(space: AddressSpace, head: int, guess: Sequence[int]) -> tuple[list[int], int]:
    """The part of a guess that still holds, and the pointer to go on from."""
    if not guess:
        return [], space.read_pointer(head)
    faults: list[int] = []
    nexts = space.gather_pointers([head, *guess], faults)
    if not faults and nexts[:-1] == tuple(guess):
        return list(guess), nexts[-1]
    held = 0
    stop = min(faults, default=len(nexts))
    while held < len(guess) and held < stop and nexts[held] == guess[held]:
        held += 1
    return list(guess[:held]), nexts[held]


def _follow(
    space: AddressSpace,
    head: int,
    current: int,
    offset: int,
    nodes: list[int],
    limit: int,
    budget: Budget,
) -> Problem | None:
    """Append to ``nodes`` until ``head``; tells why where it does not get there."""
    read = space.read_pointer
    seen = set(nodes)
    while current != head:
        if current in seen:
            return Problem("list with a cycle", current)
        if len(nodes) >= limit:
            return Problem(f"list longer than {limit} entries", head)
        if not len(nodes) % _STRIDE and budget.late():
            return Problem("list walk took too long", head)
        try:
            following = read(current + offset)
        except FaultError:
            return Problem("list leads to an unreadable entry", current)
        nodes.append(current)
        seen.add(current)
        current = following
    return None


def _behind_the_break(
    space: AddressSpace, head: int, before: list[int], limit: int, budget: Budget
) -> list[int]:
    """Entries that are only reachable backwards, in list order."""
    nodes = list(before)
    try:
        prev = space.pointer_size
        _follow(space, head, space.read_pointer(head + prev), prev, nodes, limit, budget)
    except FaultError:
        return []
    return nodes[len(before) :][::-1]
