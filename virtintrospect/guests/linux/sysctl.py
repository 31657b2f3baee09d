"""Kernel parameters: the tree behind /proc/sys (fs/proc/proc_sysctl.c), read from the variables.

Network namespaces have trees of their own, as have the first user, IPC and PID namespaces. A value
is known where the function that prints it is (:mod:`~virtintrospect.guests.linux.sysctlvalues`).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.netns import namespaces
from virtintrospect.guests.linux.rbtree import walk_rbtree
from virtintrospect.guests.linux.sysctlvalues import values
from virtintrospect.model import Sysctl

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: Most parameters that are shown: each costs some KiB of host memory while the table is made.
LIMIT = 1 << 17
#: Deepest directory; real ones are six deep.
_DEEPEST = 16
#: Longest name of a file or directory.
_NAME = 64
#: Most entries that are registered together; the largest array has some 150.
_TOGETHER = 4096
_FORMAT, _DIRECTORY, _REGULAR = 0o170000, 0o040000, 0o100000
#: Sets of the first namespaces: symbol, type, and the member that is a ``ctl_table_set``.
_SETS = (
    ("sysctl_table_root", "ctl_table_root", "default_set.dir"),
    ("init_user_ns", "user_namespace", "set.dir"),
    ("init_ipc_ns", "ipc_namespace", "ipc_set.dir"),
    ("init_ipc_ns", "ipc_namespace", "mq_set.dir"),
    ("init_pid_ns", "pid_namespace", "set.dir"),
)
_NODE = {"header": "header", "table": "header.ctl_table", "first": "header.node"}
_ENTRY = {
    "procname": "procname",
    "data": "data",
    "size": "maxlen",
    "mode": "mode",
    "handler": "proc_handler",
}


class _Directory(NamedTuple):
    """A ``ctl_dir``, its path, and the namespace whose it is."""

    address: int
    path: bytes
    namespace: int | None


def sysctl(guest: LinuxGuest, pattern: str | None = None) -> list[Sysctl]:
    """The rows of ``sysctl``: by namespace, then by name.

    :param pattern: a shell pattern; or a name, which stands for all below it, too.
    """
    budget = Budget()
    order: dict[int | None, int] = {None: 0}
    rows: dict[tuple[int | None, bytes], Row] = {}
    level = _roots(guest, budget)
    for directory in level:
        order.setdefault(directory.namespace, len(order))
    seen: set[int] = set()
    for _ in range(_DEEPEST):
        level = [directory for directory in level if directory.address not in seen]
        if not level or budget.late() or len(rows) > LIMIT:
            break
        seen.update(directory.address for directory in level)
        below: list[_Directory] = []
        for row in _entries(guest, level, budget):
            if row["mode"] & _FORMAT == _DIRECTORY:
                # A directory's header is the beginning of its ctl_dir.
                below.append(_Directory(row["header"], row["name"] + b".", row["namespace"]))
            elif row["mode"] & _FORMAT == _REGULAR or not row["mode"] & _FORMAT:
                rows.setdefault((row["namespace"], row["name"]), row)
        level = below
    found = [row for row in rows.values() if _matches(row["name"], pattern)]
    if len(found) > LIMIT:
        guest.note(f"more than {LIMIT} parameters: the rest is left out", found[LIMIT]["entry"])
    found = sorted(found[:LIMIT], key=lambda row: (order[row["namespace"]], row["name"]))
    shown = values(guest, found, budget)
    guest.note_all([budget.problem])
    return [_record(guest, row, value) for row, value in zip(found, shown, strict=True)]


def _roots(guest: LinuxGuest, budget: Budget) -> list[_Directory]:
    types, symbols = guest.types, guest.symbols
    found = [
        _Directory(symbols.address(symbol) + types.offsetof(name, member), b"", None)
        for symbol, name, member in _SETS
        if symbol in symbols and types.has(name, member)
    ]
    at = types.offsetof("net", "sysctls.dir")
    nets = namespaces(guest, budget).items()
    return found + [_Directory(net + at, b"", inode) for net, inode in nets]


def _entries(guest: LinuxGuest, directories: list[_Directory], budget: Budget) -> list[Row]:
    """What is in some directories, each with its whole name."""
    types = guest.types
    layout = guest.layout("ctl_dir", {"root": "root.rb_node"}, text=())
    roots = layout.lists(guest.kernel, [it.address for it in directories], [])["root"]
    node_at, size = types.offsetof("ctl_node", "node"), types.sizeof("ctl_node")
    nodes: list[tuple[_Directory, int]] = []
    for directory, root in zip(directories, roots, strict=True):
        if root is None:
            guest.note("unreadable directory of parameters", directory.address)
            continue
        tree, problem = walk_rbtree(guest, root, budget)
        guest.note_all([problem])
        nodes += [(directory, node - node_at) for node in tree if node >= node_at]
    placed = _placed(guest, nodes, size)
    rows = []
    for (directory, header, entry), row in zip(placed, _read(guest, placed), strict=True):
        if row["mode"] is None or not row["name"]:
            guest.note("unreadable parameter", entry)
            continue
        # As sysctl(8) has it: a dot of an interface's name becomes a slash.
        name = directory.path + row["name"].replace(b".", b"/")
        if not budget.keep(len(name)):
            break
        rows.append(row | {"name": name, "header": header, "namespace": directory.namespace})
    return rows


def _placed(
    guest: LinuxGuest, nodes: list[tuple[_Directory, int]], size: int
) -> list[tuple[_Directory, int, int]]:
    """Directory, header and ``ctl_table`` of each node: two arrays run side by side."""
    columns = guest.layout("ctl_node", _NODE, text=()).lists(
        guest.kernel, [node for _, node in nodes], []
    )
    length = guest.types.sizeof("ctl_table")
    placed = []
    for (directory, node), header, table, first in zip(nodes, *columns.values(), strict=True):
        number, rest = divmod(node - (first or 0), size or 1)
        if not header or not table or rest or not 0 <= number < _TOGETHER:
            guest.note("unreadable parameter", node)
        else:
            placed.append((directory, header, table + number * length))
    return placed


def _read(guest: LinuxGuest, placed: list[tuple[_Directory, int, int]]) -> list[Row]:
    """Members of each ``ctl_table``; on a live guest those that went meanwhile are empty."""
    addresses = [entry for _, _, entry in placed]
    layout = guest.layout("ctl_table", _ENTRY, text=())
    columns = layout.lists(guest.kernel, addresses, [])
    names = guest.kernel.strings([it or 0 for it in columns["procname"]], _NAME)
    if guest.live:
        guest.memory.expire()
        again = layout.lists(guest.kernel, addresses, [])["procname"]
        names = [
            name if now == before else None
            for name, before, now in zip(names, columns["procname"], again, strict=True)
        ]
    return [
        dict(zip(columns, found, strict=True)) | {"name": name, "entry": entry}
        for entry, name, *found in zip(addresses, names, *columns.values(), strict=True)
    ]


def _matches(name: bytes, pattern: str | None) -> bool:
    if pattern is None:
        return True
    text = name.decode("utf-8", "backslashreplace")
    return fnmatchcase(text, pattern) or text.startswith(pattern + ".")


def _record(guest: LinuxGuest, row: Row, value: bytes | None) -> Sysctl:
    handler = guest.symbols.lookup(row["handler"] or 0)
    return Sysctl(
        name=row["name"],
        value=value,
        handler=handler[0] if handler and not handler[1] else None,
        mode=f"{row['mode'] & 0o7777:04o}",
        net_namespace=row["namespace"],
    )
