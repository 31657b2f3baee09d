"""Many short chains at once: the buckets of a hash table, the addresses of all interfaces.

One bulk read a level brings the next pointers of all chains together, so that a table of a
hundred thousand buckets costs no more reads than its longest chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.budget import Budget

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Longest chain that is followed; hash chains of a table that is full have a few entries.
LONGEST = 1 << 16
#: Entries between two looks at the clock.
_STRIDE = 1024
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
        level = _new(guest, level, ends, seen)
        level = level[: budget.follow(len(level))]
        if not level or budget.late():
            return found
        if len(level) == 1:
            _follow_one(guest, level[0], budget, next_at, ends, seen, found)
            return found
        seen.update(link.node for link in level)
        faults: list[int] = []
        nexts = guest.kernel.gather_pointers([link.node + next_at for link in level], faults)
        for index in faults:
            guest.note("chain leads to an unreadable entry", level[index].node)
        bad = set(faults)
        found += (link for index, link in enumerate(level) if index not in bad)
        level = [
            Link(link.chain, following)
            for index, (link, following) in enumerate(zip(level, nexts, strict=True))
            if index not in bad
        ]
    guest.note(f"chain longer than {LONGEST} entries", level[0].node)
    return found


def _new(
    guest: LinuxGuest, level: list[Link], ends: Sequence[int] | None, seen: set[int]
) -> list[Link]:
    """Those links that are no end, and that no chain has had before."""
    fresh: dict[int, Link] = {}
    repeated = 0
    for link in level:
        if _ends(link, ends):
            continue
        if link.node in seen or link.node in fresh:
            repeated = link.node
        else:
            fresh[link.node] = link
    if repeated:
        guest.note("chain with a cycle", repeated)
    return list(fresh.values())


def _follow_one(
    guest: LinuxGuest,
    link: Link,
    budget: Budget,
    next_at: int,
    ends: Sequence[int] | None,
    seen: set[int],
    found: list[Link],
) -> None:
    """The rest of the last chain, entry by entry; its first one is paid for."""
    chain, node = link
    read = guest.kernel.read_pointer
    for number in range(LONGEST):
        try:
            following = read(node + next_at)
        except FaultError:
            guest.note("chain leads to an unreadable entry", node)
            return
        found.append(Link(chain, node))
        seen.add(node)
        node = following
        if _ends(Link(chain, node), ends):
            return
        if node in seen:
            guest.note("chain with a cycle", node)
            return
        if not budget.follow(1) or (not number % _STRIDE and budget.late()):
            return
    guest.note(f"chain longer than {LONGEST} entries", node)


def _ends(link: Link, ends: Sequence[int] | None) -> bool:
    node = link.node
    return not node or bool(node & 1) or (ends is not None and node == ends[link.chain])


def heads(
    guest: LinuxGuest,
    array: int,
    count: int,
    budget: Budget,
    *,
    stride: int = 0,
    offset: int = 0,
    locks: bool = False,
) -> list[int]:
    """First nodes of the chains of a hash table; empty buckets are left out.

    :param array: address of the buckets.
    :param stride: bytes of a bucket; without, those of a pointer.
    :param offset: of its head within a bucket.
    :param locks: the lowest bit of a bucket is a lock, not the mark of an empty one.
    :raises FaultError: the array cannot be read.
    """
    found: list[int] = []
    pointer = guest.kernel.pointer_size
    stride = stride or pointer
    step = max(pointer, _STEP // stride * stride)
    for start in range(0, count * stride, step):
        size = min(step, count * stride - start)
        words = guest.kernel.pointers(array + start, size // pointer)
        buckets = words[offset // pointer :: stride // pointer]
        if len(found) > budget.entries or budget.late():
            break  # whoever walks them finds that there are too many
        if locks:
            found += [word & ~1 for word in buckets if word > 1]
        else:
            found += [word for word in buckets if word and not word & 1]
    return found
