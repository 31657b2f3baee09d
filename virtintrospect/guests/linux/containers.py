"""Containers: processes that share a control group of a known pattern, or namespaces.

The kernel knows no containers. A runtime shows in the path of the control group
(:mod:`~virtintrospect.guests.linux.containernames`); what has a PID namespace of its own, or a
mount namespace with another root directory, and no such path, is a container of an unknown
runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cgroups import groups_of_sets, memory_usage
from virtintrospect.guests.linux.containernames import Match, guardian, identify
from virtintrospect.guests.linux.namespaces import inodes, memberships
from virtintrospect.guests.linux.paths import MAX_DEPTH, PathReader
from virtintrospect.guests.linux.ps import processes
from virtintrospect.model import Container

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.model import Process

UNKNOWN = "unknown"
_GONE = "ZX"
#: A task is in one group of each hierarchy; there are some ten.
_MAX_GROUPS = 64
#: Columns of the first process of a container.
_FIRST = {"root": "fs.root.dentry", "hostname": "nsproxy.uts_ns.name.nodename"}


class _Group(NamedTuple):
    """A control group: its address, its path, and the container that the path names."""

    address: int
    path: bytes
    match: Match | None


class _Member(NamedTuple):
    """A process, and what tells where it belongs."""

    process: Process
    groups: list[_Group]
    spaces: dict[str, int]
    root: int


def containers(guest: LinuxGuest) -> list[Container]:
    """The rows of ``containers``, in the order of their first processes."""
    budget = Budget()
    everybody = processes(guest)
    commands = {process.pid: process for process in everybody}
    members = _members(guest, everybody, budget)
    initial = next((member for member in members if member.process.pid == 1), None)
    found: dict[tuple[str, bytes], list[_Member]] = {}
    matches: dict[tuple[str, bytes], Match] = {}
    for member in members:
        match = _match(member, initial)
        if match:
            key = (match.runtime, match.id)
            found.setdefault(key, []).append(member)
            matches.setdefault(key, match)
    rows = _Rows(guest, [group[0] for group in found.values()], initial, budget)
    containers = []
    for number, (key, group) in enumerate(found.items()):
        parent = commands.get(group[0].process.parent or 0)
        match = matches[key]
        if parent:
            match = guardian(match, parent.name, parent.cmdline or b"")
        containers.append(rows.record(number, match, group))
    guest.note_all([budget.problem])
    return containers


def _members(guest: LinuxGuest, everybody: list[Process], budget: Budget) -> list[_Member]:
    """Processes of users that have not ended, with their groups, namespaces and roots."""
    alive = [p for p in everybody if not p.kernel_thread and p.state not in _GONE]
    tasks = [process.address for process in alive]
    members = {"set": "cgroups", "root": _FIRST["root"]}
    sets, roots = (
        guest.layout("task_struct", members, text=()).lists(guest.kernel, tasks, []).values()
    )
    groups = _groups(guest, list({css_set for css_set in sets if css_set}), budget)
    spaces = memberships(guest, tasks)
    return [
        _Member(process, groups.get(css_set, []), own, root or 0)
        for process, css_set, own, root in zip(alive, sets, spaces, roots, strict=True)
    ]


def _groups(guest: LinuxGuest, sets: list[int], budget: Budget) -> dict[int, list[_Group]]:
    """The groups of each ``css_set`` in all hierarchies."""
    found = groups_of_sets(guest, sets, budget)
    addresses = list({group for groups in found.values() for group in groups})
    layout = guest.layout("cgroup", {"node": "kn"}, text=())
    nodes = layout.lists(guest.kernel, addresses, [])["node"]
    names = PathReader(guest, budget).cgroups(node for node in nodes if node)
    paths = {group: names.get(node) for group, node in zip(addresses, nodes, strict=True)}
    matches: dict[bytes, Match | None] = {}
    for path in paths.values():
        if budget.late():
            break
        if path is not None and path not in matches:
            matches[path] = identify(path)
    return {
        css_set: [
            _Group(group, path, matches.get(path))
            for group in groups[:_MAX_GROUPS]
            if (path := paths[group]) is not None
        ]
        for css_set, groups in found.items()
    }


def _match(member: _Member, initial: _Member | None) -> Match | None:
    """The container that a process is in."""
    own = _own(member, initial)
    for group in member.groups:
        match = group.match
        if match and (not match.weak or "pid" in own or "mnt" in own):
            return match
    kind = "pid" if "pid" in own else "mnt"
    if kind in own and (kind == "pid" or (initial and member.root != initial.root)):
        return Match(UNKNOWN, f"{kind} {own[kind]:x}".encode(), None, None, 0, weak=False)
    return None


def _own(member: _Member, initial: _Member | None) -> dict[str, int]:
    """The namespaces that a process does not share with process 1."""
    shared = initial.spaces if initial else {}
    return {
        kind: address
        for kind, address in sorted(member.spaces.items())
        if shared and shared.get(kind) != address
    }


class _Rows:
    """What is read of all containers together, from their first processes."""

    def __init__(
        self, guest: LinuxGuest, firsts: list[_Member], initial: _Member | None, budget: Budget
    ) -> None:
        self._own = [_own(first, initial) for first in firsts]
        keys = list({key for own in self._own for key in own.items()})
        self._inodes = inodes(guest, keys)
        tasks = [first.process.address for first in firsts]
        layout = guest.layout("task_struct", _FIRST, text=("hostname",))
        roots, self._hostnames = layout.lists(guest.kernel, tasks, []).values()
        paths = PathReader(guest, budget).dentries(root for root in roots if root)
        self._roots = [paths.get(root) for root in roots]
        self._memory = _memory(guest, firsts, budget)

    def record(self, number: int, match: Match, group: list[_Member]) -> Container:
        first, own = group[0], self._own[number]
        spaces = [(kind, self._inodes.get((kind, own[kind]))) for kind in own]
        hostname = self._hostnames[number]
        name = match.id
        if match.runtime == UNKNOWN:
            kind = name.split(b" ")[0].decode()
            name = f"{kind}:[{self._inodes.get((kind, own[kind]), 0)}]".encode()
        return Container(
            id=name,
            runtime=match.runtime,
            name=match.name,
            pod_uid=match.pod_uid,
            hostname=hostname.split(b"\0", 1)[0] if hostname is not None else None,
            processes=len(group),
            pid=first.process.pid,
            pids=tuple(member.process.pid for member in group),
            started=first.process.start_time,
            memory_current=self._memory[number],
            cgroup_path=_path(first, match),
            namespaces=tuple(f"{kind}:[{inode}]" for kind, inode in spaces if inode),
            root=self._roots[number],
        )


def _path(member: _Member, match: Match) -> bytes | None:
    """The container's own group; of an unknown one that of its first process."""
    for group in member.groups:
        found = group.match
        if found and found.id == match.id:
            return b"/" + b"/".join(group.path.strip(b"/").split(b"/")[: found.depth])
    return member.groups[0].path if member.groups else None


def _memory(guest: LinuxGuest, firsts: list[_Member], budget: Budget) -> list[int | None]:
    """Bytes of memory that each container's own group uses, where one has them counted."""
    places: list[tuple[int, int]] = []
    for number, first in enumerate(firsts):
        for group in first.groups:
            match = group.match
            if match and not budget.late():
                below = len(group.path.strip(b"/").split(b"/")) - match.depth
                places.append((number, _above(guest, group.address, below)))
    found: list[int | None] = [None] * len(firsts)
    pages = memory_usage(guest, [address for _, address in places])
    for (number, _), used in zip(places, pages, strict=True):
        if used is not None and found[number] is None:
            found[number] = used * guest.page_size
    return found


def _above(guest: LinuxGuest, group: int, levels: int) -> int:
    """The ancestor of a group, some levels up; 0 where the way is broken."""
    layout = guest.layout("cgroup", {"parent": "self.parent"}, text=())
    own = guest.types.offsetof("cgroup", "self")
    for _ in range(min(levels, MAX_DEPTH)):
        parent = layout.lists(guest.kernel, [group], [])["parent"][0]
        if not parent or parent < own:
            return 0
        group = parent - own
    return group
