"""Where routes lead: next hops of a route itself, and next hop objects (include/net/nexthop.h).

Both IP versions share ``struct fib_nh_common`` (include/net/ip_fib.h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: AF_INET, AF_INET6.
_INET, _INET6 = 2, 10
#: More next hops than fit into the netlink attribute (64 KiB) by which a route gets them.
_MOST = 1 << 13


class Hop(NamedTuple):
    """One next hop."""

    #: Index of the interface; 0 for none.
    oif: int
    #: An address of either version, or ``None`` on the link itself.
    gateway: str | None
    #: RTNH_F_*.
    flags: int
    weight: int


class Group(NamedTuple):
    """A next hop object: its id, and the ``fib_nh_common`` and weight of each of its hops."""

    id: int
    hops: list[tuple[int, int | None]]


def read(guest: LinuxGuest, addresses: list[int]) -> list[Hop | None]:
    r"""What the ``fib_nh_common``\ s say; ``None`` where one cannot be read."""
    from socket import AF_INET, AF_INET6, inet_ntop

    members = {
        "oif": "nhc_oif",
        "family": "nhc_gw_family",
        "gateway": "nhc_gw.ipv6.in6_u.u6_addr8",
        "flags": "nhc_flags",
        "weight": "nhc_weight",
    }
    layout = guest.layout("fib_nh_common", members, text=("gateway",))
    columns = layout.lists(guest.kernel, addresses, [])
    found: list[Hop | None] = []
    for oif, family, raw, flags, weight in zip(*columns.values(), strict=True):
        if oif is None or raw is None or len(raw) != 16:
            found.append(None)
            continue
        gateway = None
        if family == _INET:
            gateway = inet_ntop(AF_INET, raw[:4])
        elif family == _INET6:
            gateway = inet_ntop(AF_INET6, raw)
        found.append(Hop(oif, gateway, flags, weight))
    return found


def objects(guest: LinuxGuest, pointers: list[int], budget: Budget) -> dict[int, Group]:
    r"""The ``struct nexthop``\ s at ``pointers``, groups resolved to their members."""
    if "nexthop" not in guest.types:
        return {}  # until 5.2
    layout = guest.layout("nexthop", {"id": "id", "group": "is_group", "it": "nh_info"}, text=())
    wanted = list(dict.fromkeys(pointers))
    columns = layout.lists(guest.kernel, wanted, [])
    found: dict[int, Group] = {}
    groups: list[tuple[int, int, int]] = []
    for pointer, number, grouped, it in zip(wanted, *columns.values(), strict=True):
        if number is None or not it:
            guest.note("unreadable next hop", pointer)
        elif grouped:
            groups.append((pointer, number, it))
        else:
            found[pointer] = Group(number, [(it + _common(guest), None)])
    members = _members(guest, [group for _, _, group in groups], budget)
    for (pointer, number, _), hops in zip(groups, members, strict=True):
        found[pointer] = Group(number, hops)
    return found


def _common(guest: LinuxGuest) -> int:
    return guest.types.offsetof("nh_info", "fib_nhc")


def _members(
    guest: LinuxGuest, groups: list[int], budget: Budget
) -> list[list[tuple[int, int | None]]]:
    r"""Of each ``struct nh_group`` its hops; a group has no groups in it."""
    types = guest.types
    entries_at, size = types.offsetof("nh_group", "nh_entries"), types.sizeof("nh_grp_entry")
    counts = guest.layout("nh_group", {"count": "num_nh"}, text=()).lists(guest.kernel, groups, [])[
        "count"
    ]
    layout = guest.layout("nh_grp_entry", {"it": "nh.nh_info", "weight": "weight"}, text=())
    found = []
    for group, count in zip(groups, counts, strict=True):
        taken = budget.follow(many(guest, count, group))
        first = group + entries_at
        columns = layout.lists(guest.kernel, [first + size * n for n in range(taken)], [])
        found.append(
            [
                (it + _common(guest), weight)
                for it, weight in zip(columns["it"], columns["weight"], strict=True)
                if it
            ]
        )
    return found


def many(guest: LinuxGuest, count: int | None, address: int) -> int:
    """A number of next hops, as far as it can be true."""
    if count is None or not 0 <= count <= _MOST:
        guest.note(f"route with {count} next hops", address)
        return 0
    return count


def confirmed(
    guest: LinuxGuest, rows: list[dict[str, Any]], structure: str, identity: dict[str, str]
) -> list[dict[str, Any]]:
    """Look a second time: memory that meanwhile is another route's is not reported.

    :param rows: routes with the address of the ``structure`` that each was read from.
    :param identity: members that are the same as long as the route is, by their names in a row.
    """
    if not guest.live:
        return rows
    layout = guest.layout(structure, identity, text=())
    again = layout.lists(guest.kernel, [row["address"] for row in rows], [])
    kept = []
    for row, *now in zip(rows, *again.values(), strict=True):
        if now == [row[name] for name in identity]:
            kept.append(row)
        else:
            guest.note("route that went while it was read", row["address"])
    return kept
