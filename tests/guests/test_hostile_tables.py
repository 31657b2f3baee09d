"""Aimed lies about routes, neighbours, eBPF, timers and parameters (see test_hostile.py)."""

from __future__ import annotations

import struct

from virtintrospect.guests.linux import fib4, fib6
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.netns import namespaces

from .test_hostile import Liar, liar, quickly, ram, store, whats

__all__ = ["liar", "ram", "store"]


def test_tries(liar: Liar) -> None:
    """A node that claims 2^31 children, one that has itself as child, a leaf far below."""
    guest = liar.guest
    nets = list(namespaces(guest, Budget()))
    trie = next(trie for _, trie in fib4._roots(guest, nets, Budget()))
    child_at = guest.types.offsetof("key_vector", "tnode")
    node = liar.room
    for pos, bits in ((0, 31), (31, 1), (40, 40), (20, 12)):
        # Children: the node itself, many times.
        liar.write(node, struct.pack("<IBBBx", 0, pos, bits, 0) + struct.pack("<Q", node) * 4096)
        liar.write(trie + guest.types.offsetof("trie", "kv") + child_at, struct.pack("<Q", node))
        quickly(guest.routes)
        assert "broken tree of routes" in whats(guest)


def test_trees(liar: Liar) -> None:
    """A tree whose nodes lead back, and a chain of routes that never ends."""
    guest = liar.guest
    nets = list(namespaces(guest, Budget()))
    rows = fib6.routes(guest, nets, Budget())
    _, root = fib6._roots(guest, nets, Budget())[0]
    liar.set("fib6_node", "left", root, root)
    liar.set("fib6_info", "fib6_next", rows[-1]["address"], rows[-1]["address"])
    quickly(guest.routes)
    assert {"broken tree of routes", "chain with a cycle"} <= whats(guest)


def test_counts(liar: Liar) -> None:
    """Numbers that no kernel has."""
    guest = liar.guest
    nets = list(namespaces(guest, Budget()))
    info = next(row["info"] for row in fib4.routes(guest, nets, Budget()) if not row["object"])
    liar.set("fib_info", "fib_nhs", info, 0x7FFF_FFFF)
    quickly(guest.routes)
    table = guest.kernel.read_u64(
        guest.symbols.address("arp_tbl") + guest.types.offsetof("neigh_table", "nht")
    )
    liar.set("neigh_hash_table", "hash_shift", table, 0xFFFF_FFFF)
    quickly(guest.neighbours)
    found = whats(guest)
    assert any("next hops" in what for what in found)
    assert any("table of neighbours" in what for what in found)


def test_identities(liar: Liar) -> None:
    """An eBPF object under a wrong id; a parameter without a name; a timer that calls data."""
    guest = liar.guest
    rows = guest.bpf()
    liar.set("bpf_map", "id", rows[-1].address, 77)
    assert len(guest.bpf()) == len(rows) - 1
    timers = guest.timers()
    liar.set("timer_list", "function", timers[0].address, liar.room)
    assert timers[0].address not in {timer.address for timer in guest.timers()}
    quickly(guest.sysctl)
    assert {"unreadable bpf_map", "unreadable timer"} <= whats(guest)
