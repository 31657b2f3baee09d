"""Many short chains at once: the buckets of a hash table, the addresses of all interfaces.

One bulk read a level brings the next pointers of all chains together, so that a table of a
hundred thousand buckets costs no more reads than its longest chain.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.guests.linux.budget import Budget

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Longest chain that is followed; hash chains of a table that is full have a few entries.
LONGEST = 1 << 17
#: Bytes of an array of pointers that are looked at together.
_STEP = 1 << 19


class Link(NamedTuple):
    """One node of a chain: which chain it is in, and its address."""

    chain: int
    node: int


def walk_chains(
    guest: LinuxGuest,
    firsts: Sequence[int | None],
    budget: Budget,
    *,
    next_at: int = 0,
    ends: Sequence[int] | None = None,
) -> list[Link]:
    """Every node of many chains, level by level.

    :param firsts: the first node of each chain; null, ``None`` and odd values (the end marks
        of include/linux/list_nulls.h and of rhashtable) are empty chains.
    :param next_at: where a node holds the pointer to the next one.
    :param ends: for circular lists the address of each head.
    """
    found: list[Link] = []
    seen: set[int] = set()
    level = [Link(chain, node) for chain, node in enumerate(firsts) if node is not None]
    for _ in range(LONGEST):
        level = [link for link in level if not _ends(link, ends)]
        repeated = [link for link in level if link.node in seen]
        if repeated:
            guest.note("chain with a cycle", repeated[0].node)
            level = [link for link in level if link.node not in seen]
        level = level[: budget.follow(len(level))]
        if not level or budget.late():
            return found
        seen.update(link.node for link in level)
        faults: list[int] = []
        data = guest.kernel.gather([link.node + next_at for link in level], 8, faults)
        for index in faults:
            guest.note("chain leads to an unreadable entry", level[index].node)
        bad = set(faults)
        nexts = struct.unpack(f"<{len(level)}Q", data)
        level = [link for index, link in enumerate(level) if index not in bad]
        found += level
        following = (node for index, node in enumerate(nexts) if index not in bad)
        level = [Link(link.chain, node) for link, node in zip(level, following, strict=True)]
    guest.note(f"chain longer than {LONGEST} entries", level[0].node if level else 0)
    return found


def _ends(link: Link, ends: Sequence[int] | None) -> bool:
    node = link.node
    return not node or bool(node & 1) or (ends is not None and node == ends[link.chain])


def heads(
    guest: LinuxGuest,
    array: int,
    count: int,
    *,
    stride: int = 8,
    offset: int = 0,
    locks: bool = False,
) -> list[int]:
    """First nodes of the chains of a hash table; empty buckets are left out.

    :param array: address of the buckets.
    :param stride: bytes of a bucket.
    :param offset: of its head within a bucket.
    :param locks: the lowest bit of a bucket is a lock, not the mark of an empty one.
    :raises FaultError: the array cannot be read.
    """
    found: list[int] = []
    step = max(8, _STEP // stride * stride)
    for start in range(0, count * stride, step):
        size = min(step, count * stride - start)
        words = memoryview(guest.kernel.read(array + start, size)).cast("Q")
        buckets = words[offset // 8 :: stride // 8]
        if locks:
            found += [word & ~1 for word in buckets if word > 1]
        else:
            found += [word for word in buckets if word and not word & 1]
    return found
