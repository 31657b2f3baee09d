"""Network namespaces (``net_namespace_list``, include/net/net_namespace.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux.lists import walk_list

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: More network namespaces than a guest has.
LIMIT = 1 << 16


def namespaces(guest: LinuxGuest, budget: Budget) -> dict[int, int]:
    """Address of each ``struct net``: the inode number of its namespace, the initial one first."""
    head = guest.symbols.address("net_namespace_list")
    nodes, problem = walk_list(guest.kernel, head, limit=LIMIT, budget=budget)
    guest.note_all([problem])
    offset = guest.types.offsetof("net", "list")
    nets = [node - offset for node in nodes if node >= offset]
    layout = guest.layout("net", {"inode": "ns.inum"}, text=())
    inodes = layout.lists(guest.kernel, nets, [])["inode"]
    return {net: inode for net, inode in zip(nets, inodes, strict=True) if inode is not None}
