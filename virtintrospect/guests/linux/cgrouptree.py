"""Control groups: the tree of each hierarchy (kernel/cgroup/cgroup.c, cgroup-internal.h).

A ``struct cgroup`` hangs in the ``children`` of its parent's ``self`` until it is freed, long
after ``rmdir`` where something still refers to it (a page in the cache, for example). Such a
dying group is no longer online and has no directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.guests.linux.chains import walk_chains
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.paths import MAX_DEPTH

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.guests.linux.paths import PathReader

#: Most groups of a guest that are followed: MEM_CGROUP_ID_MAX (include/linux/memcontrol.h).
LIMIT = 1 << 16
#: Most hierarchies: one for each controller, and some with names.
_MAX_ROOTS = 256
#: MAX_CGROUP_ROOT_NAMELEN (kernel/cgroup/cgroup-internal.h).
_MAX_NAME = 64
#: Members of this many enumerators of ``enum cgroup_subsys_id`` at most.
_MAX_CONTROLLERS = 32
#: The hierarchy of cgroup v2; /proc/PID/cgroup shows it as ``0::``.
UNIFIED = b"unified"
#: CSS_ONLINE (include/linux/cgroup-defs.h): ``rmdir`` takes it away.
CSS_ONLINE = 1 << 1
_SUFFIX = "_cgrp_id"
#: Controllers that have another name in v1 (``legacy_name``).
_LEGACY = {"io": "blkio"}


class Tree(NamedTuple):
    """One hierarchy: its groups, each parent before its children."""

    #: ``unified``; in v1 the controllers, ``cpu,cpuacct``, or ``name=systemd``.
    hierarchy: bytes
    groups: list[int]
    #: Index in ``groups`` of each group's parent, -1 for the root.
    parents: list[int]

    @property
    def unified(self) -> bool:
        """Whether it is that of cgroup v2."""
        return self.hierarchy == UNIFIED


def controllers(guest: LinuxGuest) -> dict[str, int]:
    """Numbers of the controllers by name: ``memory``, ``cpu``, ``pids`` and so on."""
    found = guest.types.enumerators("cgroup_subsys_id")
    return {
        name.removesuffix(_SUFFIX): number
        for name, number in found.items()
        if name.endswith(_SUFFIX) and 0 <= number < _MAX_CONTROLLERS
    }


def trees(guest: LinuxGuest, budget: Budget) -> list[Tree]:
    """The unified hierarchy first, then those of v1 that are mounted, oldest first.

    :raises SymbolNotFoundError: the kernel has no cgroups.
    """
    inner = guest.types.offsetof("cgroup_root", "cgrp")
    unified = guest.symbols.address("cgrp_dfl_root")
    found = [_tree(guest, UNIFIED, unified + inner, budget)]
    legacy = _legacy_roots(guest, unified, budget)
    return found + [_tree(guest, name, root + inner, budget) for root, name in legacy.items()]


def _legacy_roots(guest: LinuxGuest, unified: int, budget: Budget) -> dict[int, bytes]:
    """Address of each ``cgroup_root`` of v1: its name."""
    offset = guest.types.offsetof("cgroup_root", "root_list")
    head = guest.symbols.address("cgroup_roots")
    nodes, problem = walk_list(guest.kernel, head, limit=_MAX_ROOTS, budget=budget)
    guest.note_all([problem])
    roots = [node - offset for node in reversed(nodes) if node - offset != unified]
    masks, names = (
        guest.layout("cgroup_root", {"mask": "subsys_mask", "name": "name"}, text=("name",))
        .lists(guest.kernel, roots, [])
        .values()
    )
    known = controllers(guest)
    found = {}
    for root, mask, raw in zip(roots, masks, names, strict=True):
        if mask is None:
            guest.note("unreadable hierarchy of cgroups", root)
            continue
        parts = [_LEGACY.get(name, name) for name, bit in known.items() if mask >> bit & 1]
        name = raw[:_MAX_NAME].split(b"\0", 1)[0]
        found[root] = ",".join(parts).encode() + (b"," if parts and name else b"")
        found[root] += b"name=" + name if name else b""
    return found


def _tree(guest: LinuxGuest, hierarchy: bytes, root: int, budget: Budget) -> Tree:
    """Every group of a hierarchy, read a level at a time."""
    own = guest.types.offsetof("cgroup", "self")
    children = own + guest.types.offsetof("cgroup_subsys_state", "children")
    sibling = own + guest.types.offsetof("cgroup_subsys_state", "sibling")
    above = guest.layout("cgroup", {"parent": "self.parent"}, text=())
    groups, parents = [root], [-1]
    seen, first = {root}, 0
    for _ in range(MAX_DEPTH):
        level = groups[first:]
        if not level or budget.late():
            return Tree(hierarchy, groups, parents)
        heads = [group + children for group in level]
        faults: list[int] = []
        data = guest.kernel.gather(heads, guest.types.pointer_size, faults)
        for index in faults:
            guest.note("unreadable cgroup", level[index])
        bad = set(faults)
        firsts = [
            None if index in bad else head for index, head in enumerate(guest.types.words(data))
        ]
        links = walk_chains(guest, firsts, budget, ends=heads)
        nodes = [max(0, link.node - sibling) for link in links]
        ups = above.lists(guest.kernel, nodes, [])["parent"]
        for link, group, up in zip(links, nodes, ups, strict=True):
            if group in seen or up != level[link.chain] + own:
                guest.note("cgroup in the wrong place", group)
            elif len(groups) >= LIMIT:
                guest.note(f"more than {LIMIT} cgroups: the rest is left out", root)
                return Tree(hierarchy, groups, parents)
            else:
                seen.add(group)
                groups.append(group)
                parents.append(first + link.chain)
        first += len(level)
    guest.note(f"cgroups deeper than {MAX_DEPTH}", root)
    return Tree(hierarchy, groups, parents)


def online(guest: LinuxGuest, tree: Tree, paths: PathReader) -> dict[int, bytes | None]:
    """Address of each group of a tree that has a directory: its path; without the root."""
    members = {"flags": "self.flags", "node": "kn"}
    ordered = [tree.groups[index] for index in in_order(tree)[1:]]
    flags, nodes = (
        guest.layout("cgroup", members, text=()).lists(guest.kernel, ordered, []).values()
    )
    names = paths.cgroups(node for node in nodes if node)
    return {
        group: names.get(node)
        for group, flag, node in zip(ordered, flags, nodes, strict=True)
        if flag and flag & CSS_ONLINE
    }


def below(tree: Tree, chosen: set[int]) -> Tree:
    """The part of a tree that consists of the groups at some indices and all below them."""
    groups: list[int] = []
    parents: list[int] = []
    place: dict[int, int] = {}
    for index, (group, parent) in enumerate(zip(tree.groups, tree.parents, strict=True)):
        if index in chosen or parent in place:
            place[index] = len(groups)
            groups.append(group)
            parents.append(place.get(parent, -1))
    return Tree(tree.hierarchy, groups, parents)


def in_order(tree: Tree) -> list[int]:
    """Indices of the groups as ``find`` lists directories: each before what is below it."""
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(tree.parents):
        children.setdefault(parent, []).append(index)
    ordered = []
    stack = children.get(-1, [])[::-1]
    while stack:
        index = stack.pop()
        ordered.append(index)
        stack += reversed(children.get(index, ()))
    return ordered
