"""Control groups, as their files below /sys/fs/cgroup have them.

mm/memcontrol.c, mm/page_counter.c, kernel/cgroup/pids.c, kernel/sched/core.c and fair.c.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import NoSuchTargetError
from virtintrospect.guests.linux import cgroupcpu
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cgrouptree import (
    CSS_ONLINE,
    Tree,
    below,
    controllers,
    in_order,
    trees,
)
from virtintrospect.guests.linux.chains import walk_chains
from virtintrospect.guests.linux.counters import number
from virtintrospect.guests.linux.paths import PathReader
from virtintrospect.model import ControlGroup

if TYPE_CHECKING:
    from virtintrospect.guests.linux.cgroupcpu import Usage
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: CGRP_FROZEN, bit 3 of ``cgroup.flags``: an enumerator without a name to ask for.
_CGRP_FROZEN = 1 << 3
#: PIDS_MAX: no limit of tasks (kernel/cgroup/pids.c), PID_MAX_LIMIT and one, by the bytes of a
#: ``long``.
_NO_PIDS = {8: (4 << 20) + 1, 4: 32769}
#: RUNTIME_INF: no limit of CPU time.
_NO_QUOTA = (1 << 64) - 1
_MICROSECOND = 1000
#: Bits behind the point of the scheduler's weights, which 32-bit kernels do without; its weight
#: of what cpu.weight calls 100.
_SHIFT, _WEIGHT, _DEFAULT = {8: 10, 4: 0}, 1024, 100

_GROUP = {
    "flags": "flags",
    "css_flags": "self.flags",
    "serial": "self.serial_nr",
    "node": "kn",
    "csets": "nr_populated_csets|self.nr_populated_csets",
    "domains": "nr_populated_domain_children",
    "threaded": "nr_populated_threaded_children",
}
_IDENTITY = {"css_flags": "self.flags", "serial": "self.serial_nr"}
_MEMORY = {
    "current": "memory.usage.counter",
    "max": "memory.max",
    "high": "memory.high",
    "low": "memory.low",
    "min": "memory.min",
    "swap_current": "swap.usage.counter?",
    "swap_max": "swap.max?",
}
#: Column → enumerator of ``enum memcg_memory_event``.
_EVENTS = {
    "events_high": "MEMCG_HIGH",
    "events_max": "MEMCG_MAX",
    "events_oom": "MEMCG_OOM",
    "events_oom_kill": "MEMCG_OOM_KILL",
}
_PIDS = {"current": "counter.counter", "max": "limit.counter"}
_CPU = {
    "shares": "shares",
    "quota": "cfs_bandwidth.quota",
    "period": "cfs_bandwidth.period",
    "nr_periods": "cfs_bandwidth.nr_periods",
    "nr_throttled": "cfs_bandwidth.nr_throttled",
    "throttled": "cfs_bandwidth.throttled_time",
}
#: Controller → its structure, the member that is its ``cgroup_subsys_state``, what is wanted.
_STRUCTURES = {
    "memory": ("mem_cgroup", _MEMORY),
    "pids": ("pids_cgroup", _PIDS),
    "cpu": ("task_group", _CPU),
}


def cgroups(guest: LinuxGuest, path: bytes | str | None = None) -> list[ControlGroup]:
    """The rows of ``cgroups``: the unified hierarchy first, parents before their children.

    :raises NoSuchTargetError: there is no cgroup of this path in any hierarchy.
    """
    budget = Budget()
    paths = PathReader(guest, budget)
    found: list[ControlGroup] = []
    members = counts(guest, budget)
    for tree in trees(guest, budget):
        found += _Hierarchy(guest, chosen(guest, tree, paths, path), paths, budget).rows(members)
    guest.note_all([budget.problem])
    if path is not None and not found:
        raise NoSuchTargetError(
            f"the guest has no cgroup {os.fsdecode(path)!r}", hint="`cgroups` shows those it has"
        )
    return found


def chosen(guest: LinuxGuest, tree: Tree, paths: PathReader, path: bytes | str | None) -> Tree:
    """The group of a path and all below it; all of the tree where no path is given."""
    wanted = None if path is None else os.fsencode(path).rstrip(b"/")
    if not wanted:
        return tree
    nodes = guest.layout("cgroup", {"node": "kn"}, text=()).lists(guest.kernel, tree.groups, [])
    names = paths.cgroups(node for node in nodes["node"] if node)
    indices = {i for i, node in enumerate(nodes["node"]) if node and names.get(node) == wanted}
    return below(tree, indices)


def counts(guest: LinuxGuest, budget: Budget) -> dict[int, int]:
    """How many processes each group of each hierarchy has, as its cgroup.procs lists them.

    A process is where the thread is that it began with; a zombie is nowhere.
    """
    layout = guest.layout("task_struct", {"set": "cgroups", "live": "signal.live.counter"}, text=())
    sets, live = layout.lists(guest.kernel, guest.tasks.addresses(budget), []).values()
    members: dict[int, int] = {}
    for css_set, threads in zip(sets, live, strict=True):
        if css_set and threads:
            members[css_set] = members.get(css_set, 0) + 1
    found: dict[int, int] = {}
    for css_set, groups in groups_of_sets(guest, list(members), budget).items():
        for group in groups:
            found[group] = found.get(group, 0) + members[css_set]
    return found


def groups_of_sets(guest: LinuxGuest, sets: list[int], budget: Budget) -> dict[int, list[int]]:
    """The groups, one in each hierarchy, that each ``struct css_set`` stands for."""
    types = guest.types
    heads = [css_set + types.offsetof("css_set", "cgrp_links") for css_set in sets]
    offset = types.offsetof("cgrp_cset_link", "cgrp_link")
    firsts = guest.layout("css_set", {"first": "cgrp_links.next"}, text=())
    links = walk_chains(guest, firsts.lists(guest.kernel, sets, [])["first"], budget, ends=heads)
    layout = guest.layout("cgrp_cset_link", {"group": "cgrp"}, text=())
    nodes = [max(0, link.node - offset) for link in links]
    groups = layout.lists(guest.kernel, nodes, [])["group"]
    found: dict[int, list[int]] = {css_set: [] for css_set in sets}
    for link, group in zip(links, groups, strict=True):
        if group:
            found[sets[link.chain]].append(group)
    return found


def memory_usage(guest: LinuxGuest, groups: list[int]) -> list[int | None]:
    """Pages that each group uses; ``None`` where its memory is not counted."""
    number = controllers(guest).get("memory")
    if number is None or "mem_cgroup" not in guest.types:
        return [None] * len(groups)
    layout = guest.layout("cgroup", {"css": f"subsys[{number}]"}, text=())
    offset = guest.types.offsetof("mem_cgroup", "css")
    owners = [max(0, (css or 0) - offset) for css in layout.lists(guest.kernel, groups, [])["css"]]
    usage = guest.layout("mem_cgroup", {"usage": _MEMORY["current"]}, text=())
    return usage.lists(guest.kernel, owners, [])["usage"]


class _Hierarchy:
    """One hierarchy, or a part of it, and all that is read of its groups."""

    def __init__(self, guest: LinuxGuest, tree: Tree, paths: PathReader, budget: Budget) -> None:
        self._guest = guest
        self._long = guest.types.pointer_size
        #: PAGE_COUNTER_MAX: no limit of memory, in pages.
        self._no_pages = ((1 << 63) - 1) // guest.page_size if self._long == 8 else (1 << 31) - 1
        self._tree = tree
        known = controllers(guest)
        self._controllers = {name: known[name] for name in _STRUCTURES if name in known}
        members = _GROUP | {name: f"subsys[{n}]" for name, n in self._controllers.items()}
        self._groups = self._read("cgroup", members, tree.groups)
        self._paths = paths.cgroups(row["node"] for row in self._groups if row["node"])
        self._usage: list[Usage | None] = [None] * len(tree.groups)
        if tree.unified:
            rows = self._read("cgroup", cgroupcpu.MEMBERS, tree.groups)
            self._usage = cgroupcpu.usages(guest, tree, rows, budget)
        self._resources = {name: self._resource(name) for name in self._controllers}
        self._swap = tree.unified and _counts_swap(guest)

    def rows(self, processes: dict[int, int]) -> list[ControlGroup]:
        """The records of those groups that have a directory, and still had it afterwards."""
        again = self._read("cgroup", _IDENTITY, self._tree.groups if self._guest.live else [])
        found = []
        for index in in_order(self._tree):
            row, address = self._groups[index], self._tree.groups[index]
            if row["css_flags"] is None or row["serial"] is None:
                self._guest.note("unreadable cgroup", address)
            elif not row["css_flags"] & CSS_ONLINE:
                continue
            elif again and {name: row[name] for name in _IDENTITY} != again[index]:
                self._guest.note("a cgroup was removed while it was read", address)
            else:
                found.append(self._record(index, processes.get(address, 0)))
        return found

    def _record(self, index: int, processes: int) -> ControlGroup:
        row, usage = self._groups[index], self._usage[index]
        root = self._is_root(index)
        if root and self._tree.unified:
            usage = cgroupcpu.root_usage(self._guest)
        populated = (row["csets"], row["domains"], row["threaded"])
        return ControlGroup(
            path=self._paths.get(row["node"]),
            hierarchy=self._tree.hierarchy,
            processes=processes,
            populated=any(populated) if None not in populated else None,
            frozen=bool(row["flags"] & _CGRP_FROZEN) if self._tree.unified and not root else None,
            usage_usec=usage and usage.usage // _MICROSECOND,
            user_usec=usage and usage.user // _MICROSECOND,
            system_usec=usage and usage.system // _MICROSECOND,
            **self._memory(index, root=root),
            **self._cpu(index, root=root),
            **self._pids(index, root=root),
            address=self._tree.groups[index],
        )

    def _is_root(self, index: int) -> bool:
        parent = self._guest.layout("cgroup", {"parent": "self.parent"}, text=())
        return (
            index == 0
            and not parent.lists(self._guest.kernel, self._tree.groups[:1], [])["parent"][0]
        )

    def _memory(self, index: int, *, root: bool) -> dict[str, int | None]:
        """What the root group uses is the whole guest's; the kernel has no files for it."""
        row = self._resources.get("memory", {}).get(index, {}) if not root else {}
        pages = {name: _limit(row.get(name), self._no_pages) for name in _MEMORY}
        if not self._swap:
            pages["swap_current"] = pages["swap_max"] = None
        if not self._tree.unified:
            pages["high"] = pages["low"] = pages["min"] = None
        page = self._guest.page_size
        found = {
            name if name.startswith("swap") else f"memory_{name}": value and value * page
            for name, value in pages.items()
        }
        return found | {f"memory_{name}": row.get(name) for name in _EVENTS}

    def _cpu(self, index: int, *, root: bool) -> dict[str, int | None]:
        row = self._resources.get("cpu", {}).get(index, {})
        throttled, period = row.get("throttled"), row.get("period")
        quota = None if root else _limit(row.get("quota"), _NO_QUOTA)
        return {
            "nr_periods": row.get("nr_periods"),
            "nr_throttled": row.get("nr_throttled"),
            "throttled_usec": throttled and throttled // _MICROSECOND,
            "cpu_weight": None if root else _weight(row.get("shares"), _SHIFT[self._long]),
            "cpu_max": quota and quota // _MICROSECOND,
            "cpu_period": None if root or period is None else period // _MICROSECOND,
        }

    def _pids(self, index: int, *, root: bool) -> dict[str, int | None]:
        row = self._resources.get("pids", {}).get(index, {}) if not root else {}
        return {
            "pids_current": row.get("current"),
            "pids_max": _limit(row.get("max"), _NO_PIDS[self._long]),
        }

    def _resource(self, controller: str) -> dict[int, Row]:
        """A controller's structures, by the index of the group."""
        name, members = _STRUCTURES[controller]
        types = self._guest.types
        if name not in types:
            return {}
        if controller == "memory":
            events = types.enumerators("memcg_memory_event")
            members = members | {
                column: f"memory_events[{events[event]}].counter"
                for column, event in _EVENTS.items()
                if event in events
            }
        offset = types.offsetof(name, "css")
        owners = {i: row[controller] for i, row in enumerate(self._groups) if row[controller]}
        rows = self._read(name, members, [max(0, css - offset) for css in owners.values()])
        for address, row in zip(owners.values(), rows, strict=True):
            if None in row.values() and all(value is None for value in row.values()):
                self._guest.note(f"unreadable {controller} of a cgroup", address)
        return dict(zip(owners, rows, strict=True))

    def _read(self, name: str, members: dict[str, str], addresses: list[int]) -> list[Row]:
        columns = self._guest.layout(name, members, text=()).lists(
            self._guest.kernel, addresses, []
        )
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]


def _counts_swap(guest: LinuxGuest) -> bool:
    """Whether groups account for swap; until 5.18 it could be, and often was, switched off."""
    return not (
        "cgroup_memory_noswap" in guest.symbols and number(guest, "cgroup_memory_noswap", 1)
    )


def _limit(value: int | None, none: int) -> int | None:
    """A figure; ``None`` where it is what the kernel writes as ``max``, or not known."""
    return None if value is None or value >= none else value


def _weight(shares: int | None, shift: int) -> int | None:
    """cpu.weight of the scheduler's ``shares``: cpu_weight_read_u64()."""
    if shares is None:
        return None
    weight = max(2, shares >> shift) if shares else 0
    return (weight * _DEFAULT + _WEIGHT // 2) // _WEIGHT
