"""Routes of both IP versions, of all tables and namespaces: one row for each next hop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.guests.linux import fib4, fib6, nexthops
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.interfaces import device_names
from virtintrospect.guests.linux.netns import namespaces
from virtintrospect.model import Route

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: Most routes that are shown: each costs some 2 KiB of host memory while the table is made.
LIMIT = 1 << 17
#: RT_TABLE_* (include/uapi/linux/rtnetlink.h).
_TABLES = {253: "default", 254: "main", 255: "local"}
#: RTN_*.
_TYPES = (
    "unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole",
    "unreachable", "prohibit", "throw", "nat", "xresolve",
)  # fmt: skip
#: RT_SCOPE_*.
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
#: RTPROT_*, as /etc/iproute2/rt_protos has them.
_PROTOCOLS = {
    0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra",
    10: "mrt", 11: "zebra", 12: "bird", 13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp",
    17: "mrouted", 18: "keepalived", 42: "babel", 84: "ovn", 99: "openr", 186: "bgp",
    187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
#: RTNH_F_*; PERVASIVE says nothing.
_FLAGS = (
    (0x1, "dead"), (0x4, "onlink"), (0x8, "offload"), (0x10, "linkdown"), (0x20, "unresolved"),
    (0x40, "trap"),
)  # fmt: skip
#: RTAX_MTU - 1: index in ``dst_metrics.metrics``.
_MTU = 1


def routes(guest: LinuxGuest) -> list[Route]:
    """The rows of ``routes``: by namespace, IP version, table and destination."""
    budget = Budget()
    nets = namespaces(guest, budget)
    addresses = list(nets)
    rows = fib4.routes(guest, addresses, budget) + fib6.routes(guest, addresses, budget)
    if len(rows) > LIMIT:
        guest.note(f"more than {LIMIT} routes: the rest is left out", rows[LIMIT]["address"])
    rows = rows[:LIMIT]
    _limit_hops(guest, rows)
    order = {net: number for number, net in enumerate(addresses)}
    rows.sort(
        key=lambda row: (
            order[row["net"]],
            len(row["destination"]),
            row["table"],
            row["destination"],
            row["netmask"],
            row["metric"],
        )
    )
    names = device_names(guest, budget)
    mtus = _mtus(guest, rows)
    wanted = list(dict.fromkeys(address for row in rows for address, _ in row["hops"]))
    hops = dict(zip(wanted, nexthops.read(guest, wanted), strict=True))
    guest.note_all([budget.problem])
    found = []
    for row, mtu in zip(rows, mtus, strict=True):
        several = len(row["hops"]) > 1 or bool(row.get("siblings"))
        for address, weight in row["hops"]:
            hop = hops[address]
            if hop is None:
                guest.note("unreadable next hop", address)
                continue
            if weight is None and several:
                weight = hop.weight
            interface = names.get((row["net"], hop.oif))
            found.append(_record(row, hop, interface, mtu, weight, nets[row["net"]]))
    return found


def _limit_hops(guest: LinuxGuest, rows: list[Row]) -> None:
    """Many routes may share one object with many next hops: all rows together count."""
    left = LIMIT
    for row in rows:
        if len(row["hops"]) > left:
            guest.note(f"more than {LIMIT} next hops: the rest is left out", row["address"])
            row["hops"] = row["hops"][:left]
        left -= len(row["hops"])


def _mtus(guest: LinuxGuest, rows: list[Row]) -> list[int | None]:
    """The MTU that a route sets, where it sets one."""
    at = guest.types.offsetof("dst_metrics", "metrics") + 4 * _MTU
    pointers = list({row["metrics"] for row in rows if row["metrics"]})
    faults: list[int] = []
    data = guest.kernel.gather([pointer + at for pointer in pointers], 4, faults)
    values = dict(zip(pointers, memoryview(data).cast("I"), strict=True))
    return [values.get(row["metrics"]) or None for row in rows]


def _record(
    row: Row,
    hop: nexthops.Hop,
    interface: bytes | None,
    mtu: int | None,
    weight: int | None,
    namespace: int,
) -> Route:
    four = len(row["destination"]) == 4
    kind = row["type"]
    prefix = row.get("from") and f"{_text(row['from'])}/{row['from_bits']}"
    return Route(
        destination=_text(row["destination"]) or "",
        netmask=row["netmask"],
        gateway=hop.gateway,
        interface=interface,
        source=_text(row["source"]),
        metric=row["metric"],
        type=_TYPES[kind] if kind in range(len(_TYPES)) else str(kind),
        table=_TABLES.get(row["table"], str(row["table"])),
        protocol=_PROTOCOLS.get(row["protocol"], str(row["protocol"])),
        scope=_SCOPES.get(row["scope"], str(row["scope"])),
        flags=tuple(name for bit, name in _FLAGS if hop.flags & bit),
        mtu=mtu,
        weight=weight,
        tos=row["tos"] or None,
        source_prefix=prefix or None,
        nexthop=row["nexthop"],
        family="inet" if four else "inet6",
        net_namespace=namespace,
    )


def _text(address: bytes | None) -> str | None:
    from socket import AF_INET, AF_INET6, inet_ntop

    if address is None or len(address) not in (4, 16):
        return None
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)
