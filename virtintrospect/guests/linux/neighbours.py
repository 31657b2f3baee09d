"""Who has which address on the link: ARP and neighbour discovery (net/core/neighbour.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.chains import heads, walk_chains
from virtintrospect.guests.linux.interfaces import devices
from virtintrospect.model import Neighbour

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: Each protocol's ``struct neigh_table``, and the bytes of its addresses.
_TABLES = {"arp_tbl": ("inet", 4), "nd_tbl": ("inet6", 16)}
#: More buckets, as a power of two, than a table has: it doubles when it is full.
_WIDEST = 20
#: Buckets, as a power of two, that cost as much as one entry.
_DENSITY = 6
#: PNEIGH_HASHMASK + 1.
_PROXY_BUCKETS = 16
#: NUD_* (include/uapi/linux/neighbour.h).
_STATES = {
    0: "NONE", 0x1: "INCOMPLETE", 0x2: "REACHABLE", 0x4: "STALE", 0x8: "DELAY", 0x10: "PROBE",
    0x20: "FAILED", 0x40: "NOARP", 0x80: "PERMANENT",
}  # fmt: skip
#: NUD_VALID: the hardware address is known.
_VALID = 0x2 | 0x4 | 0x8 | 0x10 | 0x40 | 0x80
_PERMANENT = 0x80
#: NTF_*, and behind NTF_EXT_SHIFT the extended ones.
_FLAGS = (
    (0x1, "use"), (0x2, "self"), (0x4, "master"), (0x8, "proxy"), (0x10, "extern_learn"),
    (0x20, "offload"), (0x40, "sticky"), (0x80, "router"), (0x100, "managed"), (0x200, "locked"),
    (0x400, "extern_valid"),
)  # fmt: skip
_PROXY = 0x8
#: MAX_ADDR_LEN (include/linux/netdevice.h).
_MAX_ADDRESS = 32

_MEMBERS = {"dev": "dev", "state": "nud_state", "flags": "flags", "hardware": "ha"}


class _Table(NamedTuple):
    """A protocol's table."""

    family: str
    size: int
    address: int


def neighbours(guest: LinuxGuest) -> list[Neighbour]:
    """The rows of ``neighbours``: by namespace and interface, then by address; proxies last."""
    budget = Budget()
    known = devices(guest, budget)
    order = {device: number for number, device in enumerate(known)}
    found: list[tuple[tuple[Any, ...], Neighbour]] = []
    for symbol, (family, size) in _TABLES.items():
        if symbol not in guest.symbols:
            continue  # built without IPv6
        table = _Table(family, size, guest.symbols.address(symbol))
        for row in (*_entries(guest, table, budget), *_proxies(guest, table, budget)):
            device = known.get(row["dev"] or 0)
            if device is None and (row["dev"] or row["hardware"] is not None):
                continue  # its interface went
            key = (bool(row["flags"] & _PROXY), order.get(row["dev"], 0), size, row["key"])
            found.append((key, _record(table, row, device)))
    guest.note_all([budget.problem])
    return [record for _, record in sorted(found, key=lambda item: item[0])]


def _entries(guest: LinuxGuest, table: _Table, budget: Budget) -> list[Row]:
    """What is in a hash table, which is replaced by a larger one as it grows."""
    members = {"array": "nht.hash_heads|nht.hash_buckets", "shift": "nht.hash_shift"}
    where = guest.layout("neigh_table", members, text=()).lists(guest.kernel, [table.address], [])
    array, shift = where["array"][0], where["shift"][0]
    if not array or shift is None or not 0 <= shift <= _WIDEST:
        guest.note(f"table of neighbours with 2^{shift} buckets", table.address)
        return []
    chained = guest.types.has("neighbour", "next")  # until 6.13, commit f7f52738637f
    next_at = guest.types.offsetof("neighbour", "next" if chained else "hash")
    nodes = _nodes(guest, array, 1 << shift, next_at, budget)
    rows = _rows(guest, "neighbour", _MEMBERS, nodes, ("hardware",))
    if guest.live:  # a second look, at the same members but what may change any time
        guest.memory.expire()
        again = _rows(guest, "neighbour", {"dev": "dev"}, nodes, ())
        rows = [row for row, now in zip(rows, again, strict=True) if row["dev"] == now["dev"]]
    return _keyed(guest, rows, guest.types.offsetof("neighbour", "primary_key"), table.size)


def _proxies(guest: LinuxGuest, table: _Table, budget: Budget) -> list[Row]:
    """Addresses for which the guest answers in another's stead."""
    layout = guest.layout("neigh_table", {"array": "phash_buckets"}, text=())
    array = layout.lists(guest.kernel, [table.address], [])["array"][0]
    if not array:
        return []
    next_at = guest.types.offsetof("pneigh_entry", "next")
    nodes = _nodes(guest, array, _PROXY_BUCKETS, next_at, budget)
    members = {"dev": "dev", "flags": "flags", "namespace": "net.net.ns.inum"}
    rows = _rows(guest, "pneigh_entry", members, nodes, ())
    for row in rows:
        row |= {"state": None, "hardware": None}
    return _keyed(guest, rows, guest.types.offsetof("pneigh_entry", "key"), table.size)


def _nodes(guest: LinuxGuest, array: int, count: int, next_at: int, budget: Budget) -> list[int]:
    if not budget.follow(count >> _DENSITY or 1) or budget.late():
        return []
    try:
        firsts = heads(guest, array, count, budget)
    except FaultError as error:
        guest.note("unreadable table of neighbours", error.address)
        return []
    # A pointer in a bucket leads to the entry, or to the node in it: the same place, 0.
    links = walk_chains(guest, firsts, budget, next_at=next_at)
    return [link.node for link in links]


def _rows(
    guest: LinuxGuest, name: str, members: dict[str, str], nodes: list[int], text: tuple[str, ...]
) -> list[Row]:
    columns = guest.layout(name, members, text=text).lists(guest.kernel, nodes, [])
    return [
        dict(zip(columns, values, strict=True)) | {"address": node}
        for node, values in zip(nodes, zip(*columns.values(), strict=True), strict=True)
    ]


def _keyed(guest: LinuxGuest, rows: list[Row], offset: int, size: int) -> list[Row]:
    """Add the address that an entry is about; those that cannot be read are noted."""
    faults: list[int] = []
    data = guest.kernel.gather([row["address"] + offset for row in rows], size, faults)
    found, bad = [], set(faults)
    for index, row in enumerate(rows):
        if index in bad or row["flags"] is None:
            guest.note("unreadable neighbour", row["address"])
        else:
            found.append(row | {"key": data[index * size : (index + 1) * size]})
    return found


def _record(table: _Table, row: Row, device: Any) -> Neighbour:
    from socket import AF_INET, AF_INET6, inet_ntop

    state, length = row["state"], device.length if device else 0
    known = state is not None and state & _VALID and 0 < length <= _MAX_ADDRESS
    return Neighbour(
        address=inet_ntop(AF_INET if table.size == 4 else AF_INET6, row["key"]),
        mac=row["hardware"][:length].hex(":") if known else None,
        interface=device.name if device else None,
        state=None if state is None else _STATES.get(state, f"0x{state:x}"),
        permanent=None if state is None else bool(state & _PERMANENT),
        flags=tuple(name for bit, name in _FLAGS if row["flags"] & bit),
        family=table.family,
        net_namespace=device.namespace if device else row["namespace"],
    )
