"""IPv4 routes: the tries of net/ipv4/fib_trie.c, table by table."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux import fibtables, nexthops
from virtintrospect.guests.linux.chains import walk_chains

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: FIB_TABLE_HASHSZ (include/net/ip_fib.h), and that without CONFIG_IP_MULTIPLE_TABLES.
_TABLES, _FEW_TABLES = 256, 2
_BITS = 32
#: Most children of a trie's node, as a power of two; a full Internet table has some 2^17.
_WIDEST = 20
#: Children, as a power of two, that cost as much as one entry.
_DENSITY = 3

#: Who it is, for a second look.
_IDENTITY = {"info": "fa_info", "slen": "fa_slen", "table": "tb_id"}
_ALIAS = _IDENTITY | {"tos": "fa_dscp|fa_tos", "type": "fa_type"}
_INFO = {
    "protocol": "fib_protocol",
    "scope": "fib_scope",
    "source": "fib_prefsrc",
    "metric": "fib_priority",
    "metrics": "fib_metrics",
    "count": "fib_nhs",
    "object": "nh?",
}


class _Leaf(NamedTuple):
    net: int
    key: int
    #: The first ``fib_alias``.
    first: int


def routes(guest: LinuxGuest, nets: list[int], budget: Budget) -> list[Row]:
    r"""A row for each route of each ``struct net``, with its next hops' addresses."""
    leaves = _leaves(guest, _roots(guest, nets, budget), budget)
    node_at = guest.types.offsetof("fib_alias", "fa_list")
    links = walk_chains(guest, [leaf.first for leaf in leaves], budget)
    links = [link for link in links if link.node >= node_at]
    addresses = [link.node - node_at for link in links]
    columns = guest.layout("fib_alias", _ALIAS, text=()).lists(guest.kernel, addresses, [])
    rows = []
    for link, values in zip(links, zip(*columns.values(), strict=True), strict=True):
        row: Row = dict(zip(columns, values, strict=True))
        if not row["info"] or not 0 <= row["slen"] <= _BITS:
            guest.note("unreadable route", link.node)
            continue
        leaf = leaves[link.chain]
        row |= {"net": leaf.net, "address": link.node - node_at, "netmask": _BITS - row["slen"]}
        row["destination"] = (leaf.key & 0xFFFF_FFFF).to_bytes(4, "big")
        rows.append(row)
    rows = nexthops.confirmed(guest, rows, "fib_alias", _IDENTITY)
    _informed(guest, rows)
    _hops(guest, rows, budget)
    return [row for row in rows if row["count"] is not None]


def _roots(guest: LinuxGuest, nets: list[int], budget: Budget) -> list[tuple[int, int]]:
    """Namespace and address of each trie; the tables local and main may share one."""
    count = _TABLES if guest.types.has("netns_ipv4", "rules_ops") else _FEW_TABLES
    node_at = guest.types.offsetof("fib_table", "tb_hlist")
    layout = guest.layout("fib_table", {"data": "tb_data"}, text=())
    found: dict[int, int] = {}
    for net, tables in fibtables.tables(guest, nets, "ipv4", count, node_at, budget):
        for trie in layout.lists(guest.kernel, tables, [])["data"]:
            if trie:
                found.setdefault(trie, net)
    return [(net, trie) for trie, net in found.items()]


def _leaves(guest: LinuxGuest, tries: list[tuple[int, int]], budget: Budget) -> list[_Leaf]:
    """Leaves of all tries, level by level; a child has fewer bits left than its parent."""
    child_at = guest.types.offsetof("key_vector", "tnode")
    top = guest.types.offsetof("trie", "kv") + child_at
    members = {"key": "key", "pos": "pos", "bits": "bits", "first": "leaf.first"}
    layout = guest.layout("key_vector", members, text=())
    faults: list[int] = []
    words = guest.kernel.gather_pointers([trie + top for _, trie in tries], faults)
    level = [(net, word, _BITS) for (net, _), word in zip(tries, words, strict=True) if word]
    leaves: list[_Leaf] = []
    for _ in range(_BITS + 1):
        level = level[: budget.follow(len(level))]
        if not level or budget.late():
            break
        columns = layout.lists(guest.kernel, [node for _, node, _ in level], [])
        below: list[tuple[int, int, int]] = []
        for (net, node, left), values in zip(
            level, zip(*columns.values(), strict=True), strict=True
        ):
            key, pos, bits, first = values
            if key is None or pos < 0 or pos + bits > left or not 0 <= bits <= _WIDEST:
                guest.note("broken tree of routes", node)
            elif bits:
                below += [
                    (net, child, pos) for child in _children(guest, node + child_at, bits, budget)
                ]
            elif first:
                leaves.append(_Leaf(net, key, first))
        level = below
    return leaves


def _children(guest: LinuxGuest, array: int, bits: int, budget: Budget) -> list[int]:
    if not budget.follow(1 << bits >> _DENSITY or 1):
        return []
    try:
        words = guest.kernel.pointers(array, 1 << bits)
    except FaultError as error:
        guest.note("broken tree of routes", error.address)
        return []
    # Those that can still be followed, and one that says that there are more.
    return list(islice((word for word in words if word), budget.entries + 1))


def _informed(guest: LinuxGuest, rows: list[Row]) -> None:
    """Add the members of ``struct fib_info``, which routes share."""
    shared = list({row["info"] for row in rows})
    columns = guest.layout("fib_info", _INFO, text=()).lists(guest.kernel, shared, [])
    infos = {
        info: dict(zip(columns, values, strict=True))
        for info, values in zip(shared, zip(*columns.values(), strict=True), strict=True)
    }
    for row in rows:
        row |= infos[row["info"]]
        if row["count"] is None:
            guest.note("unreadable route", row["info"])
            continue
        source = row["source"] & 0xFFFF_FFFF
        row["source"] = source.to_bytes(4, "little") if source else None


def _hops(guest: LinuxGuest, rows: list[Row], budget: Budget) -> None:
    """Addresses of each row's ``fib_nh_common``, with the weights that objects give them."""
    types = guest.types
    first, size = types.offsetof("fib_info", "fib_nh"), types.sizeof("fib_nh")
    common = types.offsetof("fib_nh", "nh_common")
    named = nexthops.objects(guest, [row["object"] for row in rows if row["object"]], budget)
    for row in rows:
        group = named.get(row["object"] or 0)
        row["nexthop"] = group.id if group else None
        if group:
            row["hops"] = group.hops
            continue
        count = budget.follow(nexthops.many(guest, row["count"], row["info"]))
        start = row["info"] + first + common
        row["hops"] = [(start + size * number, None) for number in range(count)]
