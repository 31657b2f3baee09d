"""Linked lists of the kernel (include/linux/list.h), walked without trusting them."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from virtintrospect.errors import FaultError
from virtintrospect.model import Problem
from virtintrospect.space import AddressSpace

#: More entries than any list has that a table shows (PID_MAX_LIMIT, include/linux/threads.h).
LIMIT = 4 << 20
#: Seconds that one walk may take.
TIME_LIMIT = 30.0
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
) -> ListWalk:
    """Follow ``next`` from a ``struct list_head`` until it comes back to ``head``.

    :param guess: nodes that an earlier walk found. All their ``next`` pointers are read in one
        go; as far as they still chain up, no pointer needs to be followed one by one. What is
        returned always comes from memory as it is now.
    :returns: the nodes; on a broken list those before the break *and*, followed backwards
        through ``prev``, those behind it.
    """
    try:
        nodes, current = _confirm(space, head, guess)
        problem = _follow(space, head, current, 0, nodes, limit)
    except FaultError as error:
        return ListWalk([], Problem("unreadable list head", error.address))
    if problem is None:
        return ListWalk(nodes, None)
    return ListWalk(nodes + _behind_the_break(space, head, nodes, limit), problem)


def _confirm(space: AddressSpace, head: int, guess: Sequence[int]) -> tuple[list[int], int]:
    """The part of a guess that still holds, and the pointer to go on from."""
    if not guess:
        return [], space.read_u64(head)
    faults: list[int] = []
    data = space.gather([head, *guess], 8, faults)
    nexts = struct.unpack(f"<{len(guess) + 1}Q", data)
    if not faults and nexts[:-1] == tuple(guess):
        return list(guess), nexts[-1]
    held = 0
    stop = min(faults, default=len(nexts))
    while held < len(guess) and held < stop and nexts[held] == guess[held]:
        held += 1
    return list(guess[:held]), nexts[held]


def _follow(
    space: AddressSpace, head: int, current: int, offset: int, nodes: list[int], limit: int
) -> Problem | None:
    """Append to ``nodes`` until ``head``; tells why where it does not get there."""
    read = space.read_u64
    seen = set(nodes)
    deadline = time.monotonic() + TIME_LIMIT
    while current != head:
        if current in seen:
            return Problem("list with a cycle", current)
        if len(nodes) >= limit:
            return Problem(f"list longer than {limit} entries", head)
        if not len(nodes) % _STRIDE and time.monotonic() > deadline:
            return Problem(f"list walk took over {TIME_LIMIT:.0f} s", head)
        try:
            following = read(current + offset)
        except FaultError:
            return Problem("list leads to an unreadable entry", current)
        nodes.append(current)
        seen.add(current)
        current = following
    return None


def _behind_the_break(space: AddressSpace, head: int, before: list[int], limit: int) -> list[int]:
    """Entries that are only reachable backwards, in list order."""
    nodes = list(before)
    try:
        _follow(space, head, space.read_u64(head + 8), 8, nodes, limit)
    except FaultError:
        return []
    return nodes[len(before) :][::-1]
