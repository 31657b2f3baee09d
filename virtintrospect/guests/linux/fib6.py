"""IPv6 routes: the trees of net/ipv6/ip6_fib.c, table by table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.guests.linux import fibtables, nexthops
from virtintrospect.guests.linux.chains import walk_chains

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: FIB6_TABLE_HASHSZ (include/net/ip6_fib.h), and that without CONFIG_IPV6_MULTIPLE_TABLES.
_TABLES, _ONE_TABLE = 256, 1
_BITS = 128
#: Two trees of 128 bits, one in a leaf of the other (CONFIG_IPV6_SUBTREES).
_DEEPEST = 2 * (_BITS + 2)
#: The node has routes of its own (RTN_RTINFO).
_RTINFO = 0x4

#: Who it is, for a second look.
_IDENTITY = {"table_at": "fib6_table", "netmask": "fib6_dst.plen", "metric": "fib6_metric"}
_INFO = _IDENTITY | {
    "destination": "fib6_dst.addr.in6_u.u6_addr8",
    "from": "fib6_src.addr.in6_u.u6_addr8?",
    "from_bits": "fib6_src.plen?",
    "source": "fib6_prefsrc.addr.in6_u.u6_addr8",
    "source_bits": "fib6_prefsrc.plen",
    "protocol": "fib6_protocol",
    "type": "fib6_type",
    "metrics": "fib6_metrics",
    "object": "nh?",
    "table": "fib6_table.tb6_id",
}
_TEXT = ("destination", "from", "source")


class _Leaf(NamedTuple):
    net: int
    #: The first ``fib6_info``.
    first: int


def routes(guest: LinuxGuest, nets: list[int], budget: Budget) -> list[Row]:
    r"""A row for each route of each ``struct net``, with its next hops' addresses.

    The hops of a route with several are routes of their own that know each other (siblings).
    """
    if not guest.types.has("net", "ipv6") or "fib6_info" not in guest.types:
        return []  # built without IPv6
    nothing = _null_entries(guest, nets)
    leaves = _leaves(guest, _roots(guest, nets, budget), budget)
    leaves = [leaf for leaf in leaves if leaf.first not in nothing]
    next_at = guest.types.offsetof("fib6_info", "fib6_next")
    links = walk_chains(guest, [leaf.first for leaf in leaves], budget, next_at=next_at)
    text = tuple(
        name for name in _TEXT if name != "from" or guest.types.has("fib6_info", "fib6_src")
    )
    layout = guest.layout("fib6_info", _INFO | {"siblings": "fib6_nsiblings"}, text=text)
    columns = layout.lists(guest.kernel, [link.node for link in links], [])
    rows = []
    for link, values in zip(links, zip(*columns.values(), strict=True), strict=True):
        if link.node in nothing:
            continue
        row: Row = dict(zip(columns, values, strict=True))
        if row["table"] is None or row["destination"] is None or not 0 <= row["netmask"] <= _BITS:
            guest.note("unreadable route", link.node)
            continue
        row |= {"net": leaves[link.chain].net, "address": link.node, "scope": 0, "tos": None}
        row["source"] = row["source"] if row["source_bits"] else None
        row["from"] = row["from"] if row["from_bits"] else None
        rows.append(row)
    rows = nexthops.confirmed(guest, rows, "fib6_info", _IDENTITY)
    _hops(guest, rows, budget)
    return rows


def _roots(guest: LinuxGuest, nets: list[int], budget: Budget) -> list[tuple[int, int]]:
    """Namespace and top ``fib6_node`` of each table."""
    count = _TABLES if guest.types.has("netns_ipv6", "fib6_local_tbl") else _ONE_TABLE
    node_at = guest.types.offsetof("fib6_table", "tb6_hlist")
    root_at = guest.types.offsetof("fib6_table", "tb6_root")
    found = []
    for net, tables in fibtables.tables(guest, nets, "ipv6", count, node_at, budget):
        found += [(net, table + root_at) for table in tables]
    return found


def _leaves(guest: LinuxGuest, roots: list[tuple[int, int]], budget: Budget) -> list[_Leaf]:
    """Nodes with routes, level by level."""
    names = {"left": "left", "right": "right", "subtree": "subtree?"}
    members = names | {"leaf": "leaf", "flags": "fn_flags"}
    layout = guest.layout("fib6_node", members, text=())
    leaves: list[_Leaf] = []
    seen: set[int] = set()
    level = roots
    for _ in range(_DEEPEST):
        level = level[: budget.follow(len(level))]
        if not level or budget.late():
            return leaves
        seen.update(node for _, node in level)
        columns = layout.lists(guest.kernel, [node for _, node in level], [])
        below: dict[int, int] = {}
        for (net, node), values in zip(level, zip(*columns.values(), strict=True), strict=True):
            row = dict(zip(columns, values, strict=True))
            if row["flags"] is None:
                guest.note("broken tree of routes", node)
                continue
            if row["flags"] & _RTINFO and row["leaf"]:
                leaves.append(_Leaf(net, row["leaf"]))
            for child in (row[name] for name in names):
                if child in seen or child in below:
                    guest.note("broken tree of routes", child)
                elif child:
                    below[child] = net
        level = [(net, node) for node, net in below.items()]
    guest.note("tree of routes that does not end", level[0][1] if level else 0)
    return leaves


def _null_entries(guest: LinuxGuest, nets: list[int]) -> set[int]:
    """The entries that stand for no route."""
    layout = guest.layout("net", {"it": "ipv6.fib6_null_entry"}, text=())
    return {it for it in layout.lists(guest.kernel, nets, [])["it"] if it}


def _hops(guest: LinuxGuest, rows: list[Row], budget: Budget) -> None:
    types = guest.types
    at = types.offsetof("fib6_info", "fib6_nh") + types.offsetof("fib6_nh", "nh_common")
    named = nexthops.objects(guest, [row["object"] for row in rows if row["object"]], budget)
    for row in rows:
        group = named.get(row["object"] or 0)
        row["nexthop"] = group.id if group else None
        row["hops"] = group.hops if group else [(row["address"] + at, None)]
