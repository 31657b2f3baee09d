"""Tables of routes of each network namespace: ``fib_table_hash``, which IPv4 and IPv6 both have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.chains import heads, walk_chains

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest


def tables(
    guest: LinuxGuest, nets: list[int], version: str, count: int, node_at: int, budget: Budget
) -> Iterator[tuple[int, list[int]]]:
    """A namespace, and the addresses of its tables.

    :param version: the member of ``struct net``: ``ipv4`` or ``ipv6``.
    :param count: chains of the hash table.
    :param node_at: offset of a table's place in its chain.
    """
    layout = guest.layout("net", {"hash": f"{version}.fib_table_hash"}, text=())
    arrays = layout.lists(guest.kernel, nets, [])["hash"]
    for net, array in zip(nets, arrays, strict=True):
        if not array or budget.late():
            continue
        try:
            chains = heads(guest, array, count, budget)
        except FaultError as error:
            guest.note("unreadable table of routes", error.address)
            continue
        links = walk_chains(guest, chains, budget)
        yield net, [link.node - node_at for link in links if link.node >= node_at]
