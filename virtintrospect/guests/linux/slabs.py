"""Slab caches, as /proc/slabinfo has them (mm/slab_common.c, get_slabinfo() of mm/slub.c).

What a cache has altogether its nodes count. What is free is counted on the nodes' partial
slabs alone: free objects that CPUs keep for themselves (their own slabs; sheaves since 6.18)
count as used there, and so here. Since 6.10 the kernel estimates where a node has more than
10,000 partial slabs; we count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import NotFoundError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.chains import walk_chains
from virtintrospect.guests.linux.counters import number
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.model import SlabCache

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: More caches than a guest has; CONFIG_NODES_SHIFT is at most 10.
_MAX_CACHES, _MAX_NODES = 1 << 14, 1 << 10
#: Most caches' nodes altogether: 300 caches on 50 nodes have as many.
_MAX_PLACES = 1 << 14
#: A name of the kernel's own; modules may make up longer ones.
_MAX_NAME = 64
#: OO_SHIFT, OO_MASK of ``kmem_cache_order_objects`` (mm/slub.c).
_ORDER_SHIFT, _OBJECTS = 16, 0xFFFF
_MAX_ORDER = 30
#: How often partial slabs are counted whose lists changed meanwhile.
_ATTEMPTS = 3

_CACHE = {"name": "name", "size": "size", "oo": "oo.x"}
_NODE = {
    "slabs": "nr_slabs.counter?",
    "objects": "total_objects.counter?",
    "partial": "nr_partial",
    "first": "partial.next",
}


class _Node(NamedTuple):
    """A cache's ``struct kmem_cache_node``: which cache, by number, and where it is."""

    cache: int
    address: int


def slabs(guest: LinuxGuest) -> list[SlabCache]:
    """The rows of ``slabs``, in the order of /proc/slabinfo.

    :raises NotFoundError: the kernel has another allocator than SLUB.
    """
    if not guest.types.has("kmem_cache", "oo.x"):
        raise NotFoundError("the guest's kernel has another slab allocator than SLUB")
    budget = Budget()
    caches = _caches(guest, budget)
    names, sizes, orders = (
        guest.layout("kmem_cache", _CACHE, text=()).lists(guest.kernel, caches, []).values()
    )
    texts = guest.kernel.strings([name or 0 for name in names], _MAX_NAME)
    nodes, columns = _believed(guest, _nodes(guest, caches))
    free = _free(guest, caches, nodes, columns, budget)
    sums = _sums(nodes, columns, free)
    found = []
    for index, (cache, text, size, order) in enumerate(
        zip(caches, texts, sizes, orders, strict=True)
    ):
        if text is None or order is None or not 0 <= order >> _ORDER_SHIFT <= _MAX_ORDER:
            guest.note("unreadable slab cache", cache)
            continue
        if not budget.keep(len(text)):
            break
        pages = 1 << (order >> _ORDER_SHIFT)
        count, objects, unused = sums.get(index, (None, None, 0))
        found.append(
            SlabCache(
                name=text,
                active_objs=None if objects is None else max(0, objects - unused),
                num_objs=objects,
                objsize=size,
                objperslab=order & _OBJECTS,
                pagesperslab=pages,
                active_slabs=count,
                num_slabs=count,
                size=None if count is None else count * pages * guest.page_size,
                address=cache,
            )
        )
    guest.note_all([budget.problem])
    return found


def _caches(guest: LinuxGuest, budget: Budget) -> list[int]:
    head = guest.symbols.address("slab_caches")
    nodes, problem = walk_list(guest.kernel, head, limit=_MAX_CACHES, budget=budget)
    guest.note_all([problem])
    offset = guest.types.offsetof("kmem_cache", "list")
    return [node - offset for node in nodes if node >= offset]


def _nodes(guest: LinuxGuest, caches: list[int]) -> list[_Node]:
    """Every cache's nodes: ``node[]``, since 7.2 ``per_node[].node``."""
    types = guest.types
    if types.has("kmem_cache", "node[0]"):
        first, stride = types.offsetof("kmem_cache", "node[0]"), types.pointer_size
    else:
        first = types.offsetof("kmem_cache", "per_node[0].node")
        stride = types.sizeof("kmem_cache_per_node_ptrs")
    count = number(guest, "nr_node_ids", 4) if "nr_node_ids" in guest.symbols else 1
    count = min(count, _MAX_NODES, _MAX_PLACES // max(1, len(caches)))
    found = []
    for node in range(count):
        places = [cache + first + node * stride for cache in caches]
        data = guest.kernel.gather(places, types.pointer_size, [])
        found += [
            _Node(index, pointer) for index, pointer in enumerate(types.words(data)) if pointer
        ]
    return sorted(found)


def _believed(guest: LinuxGuest, nodes: list[_Node]) -> tuple[list[_Node], dict[str, list[Any]]]:
    """The nodes whose figures can be, and the figures: partial slabs are some of all slabs."""
    layout = guest.layout("kmem_cache_node", _NODE, text=())
    columns = layout.lists(guest.kernel, [node.address for node in nodes], [])
    kept = []
    for index, (node, slabs, partial) in enumerate(
        zip(nodes, columns["slabs"], columns["partial"], strict=True)
    ):
        if partial is None or (slabs is not None and partial > slabs):
            guest.note("slab cache with an impossible node", node.address)
        else:
            kept.append(index)
    return [nodes[index] for index in kept], {
        name: [column[index] for index in kept] for name, column in columns.items()
    }


def _free(
    guest: LinuxGuest,
    caches: list[int],
    nodes: list[_Node],
    columns: dict[str, list[Any]],
    budget: Budget,
) -> list[int]:
    """Free objects on each node's partial slabs: count_partial().

    A list whose length is not what its node says has changed while it was walked; it is walked
    again. So are all where something seems to be wrong, as it does where a slab moves from the
    beginning of a list to its end: what is wrong for good is so the next time as well.
    """
    free = [0] * len(nodes)
    todo = list(range(len(nodes)))
    firsts, lengths = list(columns["first"]), list(columns["partial"])
    layout = guest.layout("kmem_cache_node", {"partial": "nr_partial", "first": "partial.next"}, ())
    noted, before = len(guest.problems), None
    for attempt in range(_ATTEMPTS if guest.live else 1):
        owners = [caches[nodes[index].cache] for index in todo]
        heads = [nodes[index].address for index in todo]
        counted = _count(guest, heads, [firsts[index] for index in todo], owners, budget)
        again = []
        for index, (length, unused) in zip(todo, counted, strict=True):
            free[index] = unused
            if length != lengths[index]:
                again.append(index)
        wrong = guest.problems[noted:]
        if before is not None:
            guest.problems[noted:] = [problem for problem in wrong if problem in before]
        if not (again or wrong) or attempt + 1 == _ATTEMPTS or not guest.live or budget.late():
            break
        if not wrong:
            todo = again
        before = wrong
        del guest.problems[noted:]
        places = [nodes[index].address for index in todo]
        guest.memory.expire()
        fresh = layout.lists(guest.kernel, places, [])
        for index, length, first in zip(todo, fresh["partial"], fresh["first"], strict=True):
            lengths[index], firsts[index] = length, first
    return free


def _count(
    guest: LinuxGuest,
    nodes: list[int],
    firsts: list[int | None],
    owners: list[int],
    budget: Budget,
) -> list[tuple[int, int]]:
    """How many slabs each list has, and how many free objects those of its cache have."""
    types = guest.types
    name = "slab" if types.has("slab", "slab_list.next") else "page"  # its own type since 5.17
    heads = [node + types.offsetof("kmem_cache_node", "partial") for node in nodes]
    offset = types.offsetof(name, "slab_list")
    links = walk_chains(guest, firsts, budget, ends=heads)
    members = {"objects": "objects", "inuse": "inuse", "cache": "slab_cache"}
    columns = guest.layout(name, members, text=()).lists(
        guest.kernel, [max(0, link.node - offset) for link in links], []
    )
    lengths, free = [0] * len(nodes), [0] * len(nodes)
    for link, objects, inuse, cache in zip(links, *columns.values(), strict=True):
        lengths[link.chain] += 1
        if cache == owners[link.chain]:
            free[link.chain] += max(0, objects - inuse)
    return list(zip(lengths, free, strict=True))


def _sums(
    nodes: list[_Node], columns: dict[str, list[Any]], free: list[int]
) -> dict[int, tuple[int | None, int | None, int]]:
    """Slabs, objects and free objects of each cache, over its nodes."""
    found: dict[int, tuple[int | None, int | None, int]] = {}
    for node, slabs, objects, unused in zip(
        nodes, columns["slabs"], columns["objects"], free, strict=True
    ):
        before = found.get(node.cache, (0, 0, 0))
        found[node.cache] = _plus(before[0], slabs), _plus(before[1], objects), before[2] + unused
    return found


def _plus(total: int | None, value: int | None) -> int | None:
    """A sum that is unknown as soon as a part is; counters may be below zero for a moment."""
    return None if total is None or value is None else total + max(0, value)
