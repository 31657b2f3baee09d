"""Namespaces of every type (include/linux/nsproxy.h, include/linux/ns_common.h).

A namespace is found through the processes that are in it, through those whose children will be,
as the parent or the owner of another, and in the kernel's own lists: of network namespaces, of
mount namespaces (6.8), of all (6.18). One that only a descriptor or a bind mount holds is not
seen where there is no such list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.netns import LIMIT
from virtintrospect.guests.linux.netns import namespaces as net_namespaces
from virtintrospect.guests.linux.rbtree import walk_rbtree
from virtintrospect.model import Namespace

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest


class _Kind(NamedTuple):
    """A type of namespace, by the name it has in /proc/PID/ns."""

    structure: str
    #: CLONE_NEW… (include/uapi/linux/sched.h), which ``ns_common.ns_type`` holds.
    flag: int


KINDS = {
    "cgroup": _Kind("cgroup_namespace", 0x0200_0000),
    "ipc": _Kind("ipc_namespace", 0x0800_0000),
    "mnt": _Kind("mnt_namespace", 0x0002_0000),
    "net": _Kind("net", 0x4000_0000),
    "pid": _Kind("pid_namespace", 0x2000_0000),
    "time": _Kind("time_namespace", 0x0000_0080),
    "user": _Kind("user_namespace", 0x1000_0000),
    "uts": _Kind("uts_namespace", 0x0400_0000),
}
_TASK = {
    "cgroup": "nsproxy.cgroup_ns?",
    "ipc": "nsproxy.ipc_ns",
    "mnt": "nsproxy.mnt_ns",
    "net": "nsproxy.net_ns",
    "time": "nsproxy.time_ns?",
    "user": "real_cred.user_ns",
    "uts": "nsproxy.uts_ns",
    "own": "thread_pid",
    "level": "thread_pid.level",
}
#: Namespaces in which children will be, that may have nobody in them.
_CHILDREN = {"pid": "nsproxy.pid_ns_for_children", "time": "nsproxy.time_ns_for_children?"}
#: MAX_PID_NS_LEVEL (include/linux/pid_namespace.h); user namespaces may be nested as deep.
_DEEPEST = 32

#: Type and address.
_Key = tuple[str, int]


class _Details(NamedTuple):
    """What is wanted of a namespace itself."""

    inode: int
    parent: int
    user: int
    owner: int | None


def memberships(guest: LinuxGuest, tasks: Sequence[int]) -> list[dict[str, int]]:
    """The namespaces that each task is in: addresses by type.

    A zombie is in its PID and its user namespace only.
    """
    columns = guest.layout("task_struct", _TASK, text=()).lists(guest.kernel, tasks, [])
    own, levels = columns.pop("own"), columns.pop("level")
    columns["pid"] = _pid_namespaces(guest, own, levels)
    return [
        {kind: address for kind, address in zip(columns, values, strict=True) if address}
        for values in zip(*columns.values(), strict=True)
    ]


def _pid_namespaces(
    guest: LinuxGuest, pids: list[int | None], levels: list[int | None]
) -> list[int]:
    """task_active_pid_ns(): the namespace of a ``struct pid``'s innermost number."""
    types = guest.types
    first = types.offsetof("pid", "numbers") + types.offsetof("upid", "ns")
    size = types.sizeof("upid")
    places = [
        pid + first + level * size if pid and level is not None and level <= _DEEPEST else 0
        for pid, level in zip(pids, levels, strict=True)
    ]
    found = types.words(guest.kernel.gather(places, types.pointer_size, []))
    return [address if place else 0 for place, address in zip(places, found, strict=True)]


def inodes(guest: LinuxGuest, keys: Sequence[_Key]) -> dict[_Key, int]:
    """Inode number of each namespace, as in ``readlink /proc/PID/ns/…``."""
    found: dict[_Key, int] = {}
    for kind, (structure, _) in KINDS.items():
        addresses = [address for key, address in keys if key == kind]
        if addresses:
            layout = guest.layout(structure, {"inode": "ns.inum"}, text=())
            numbers = layout.lists(guest.kernel, addresses, [])["inode"]
            found |= {
                (kind, address): number
                for address, number in zip(addresses, numbers, strict=True)
                if number
            }
    return found


def namespaces(guest: LinuxGuest) -> list[Namespace]:
    """The rows of ``namespaces``: by type, those of the first processes first."""
    budget = Budget()
    tasks = guest.tasks.addresses(budget)
    layout = guest.layout("task_struct", {"tgid": "tgid"} | _CHILDREN, text=())
    pids, *children = layout.lists(guest.kernel, tasks, []).values()
    members: dict[_Key, list[int]] = {}
    for pid, spaces in zip(pids, memberships(guest, tasks), strict=True):
        for key in spaces.items():
            members.setdefault(key, []).append(pid)
    wanted = dict.fromkeys(members)
    for kind, column in zip(_CHILDREN, children, strict=True):
        wanted |= dict.fromkeys((kind, address) for address in column if address)
    wanted |= dict.fromkeys(_listed(guest, budget))
    details = _details(guest, list(wanted), budget)
    again = inodes(guest, list(details)) if guest.live else {}
    found = []
    for key in sorted(details, key=lambda key: list(KINDS).index(key[0])):
        kind, address = key
        detail, processes = details[key], members.get(key, [])
        if again and again.get(key) != detail.inode:
            guest.note(f"a {kind} namespace ended while it was read", address)
            continue
        above = details.get((kind, detail.parent))
        owner = details.get(("user", detail.user))
        found.append(
            Namespace(
                inode=detail.inode,
                type=kind,
                processes=len(processes),
                pid=processes[0] if processes else None,
                user_namespace=owner.inode if owner else None,
                owner=detail.owner,
                parent=above.inode if above else None,
                address=address,
            )
        )
    guest.note_all([budget.problem])
    return found


def _details(guest: LinuxGuest, keys: list[_Key], budget: Budget) -> dict[_Key, _Details]:
    """The namespaces themselves, and those that they lead to: parents and owners."""
    found: dict[_Key, _Details] = {}
    for _ in range(2 * _DEEPEST + 2):
        keys = [key for key in dict.fromkeys(keys) if key not in found]
        keys = keys[: budget.follow(len(keys))]
        if not keys or budget.late():
            break
        fresh: dict[_Key, _Details] = {}
        for kind in KINDS:
            fresh |= _of_kind(guest, kind, [address for key, address in keys if key == kind])
        found |= fresh
        keys = [(kind, detail.parent) for (kind, _), detail in fresh.items() if detail.parent]
        keys += [("user", detail.user) for detail in fresh.values() if detail.user]
    return found


def _of_kind(guest: LinuxGuest, kind: str, addresses: list[int]) -> dict[_Key, _Details]:
    structure = KINDS[kind].structure
    if not addresses or structure not in guest.types:
        return {}
    members = {"inode": "ns.inum"}
    if kind in ("pid", "user"):
        members["parent"] = "parent"
    # A user namespace is owned by its parent (NS_GET_USERNS says so, too).
    members |= {"user": "parent", "owner": "owner.val"} if kind == "user" else {"user": "user_ns"}
    columns = guest.layout(structure, members, text=()).lists(guest.kernel, addresses, [])
    found = {}
    for address, *values in zip(addresses, *columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        if not row["inode"]:
            guest.note(f"unreadable {kind} namespace", address)
            continue
        found[kind, address] = _Details(
            row["inode"], row.get("parent") or 0, row["user"] or 0, row.get("owner")
        )
    return found


def _listed(guest: LinuxGuest, budget: Budget) -> Iterator[_Key]:
    """Namespaces that the kernel itself lists."""
    if "ns_unified_root" in guest.symbols and guest.types.has(
        "ns_common", "ns_unified_node.ns_list_entry"
    ):
        yield from _unified(guest, budget)
        return
    yield from (("net", address) for address in net_namespaces(guest, budget))
    if "mnt_ns_tree" in guest.symbols and guest.types.has("mnt_namespace", "mnt_ns_tree_node"):
        nodes, problem = walk_rbtree(guest, guest.pointer("mnt_ns_tree"), budget)
        guest.note_all([problem])
        offset = guest.types.offsetof("mnt_namespace", "mnt_ns_tree_node")
        yield from (("mnt", node - offset) for node in nodes if node >= offset)


def _unified(guest: LinuxGuest, budget: Budget) -> Iterator[_Key]:
    """``ns_unified_root`` (kernel/nstree.c): those that somebody still uses."""
    types = guest.types
    head = guest.symbols.address("ns_unified_root") + types.offsetof("ns_tree_root", "ns_list_head")
    nodes, problem = walk_list(guest.kernel, head, limit=LIMIT, budget=budget)
    guest.note_all([problem])
    offset = types.offsetof("ns_common", "ns_unified_node.ns_list_entry")
    places = [node - offset for node in nodes if node >= offset]
    members = {"type": "ns_type", "used": "__ns_ref_active.counter"}
    layout = guest.layout("ns_common", members, text=())
    flags, used = layout.lists(guest.kernel, places, []).values()
    kinds = {flag: kind for kind, (_, flag) in KINDS.items()}
    for place, flag, count in zip(places, flags, used, strict=True):
        if flag in kinds and count and count > 0:
            kind = kinds[flag]
            inner = types.offsetof(KINDS[kind].structure, "ns")
            if place >= inner:
                yield kind, place - inner
