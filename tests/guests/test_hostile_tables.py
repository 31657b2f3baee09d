"""Aimed lies about routes, neighbours, eBPF, timers and parameters (see test_hostile.py)."""

from __future__ import annotations

import contextlib
import random
import struct
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.fuzz.exercise import steps
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux import fib4, fib6
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.netns import namespaces
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.layout import Layout

from .test_hostile import Liar, liar, quickly, ram, store, whats

#: Seconds of numbers that no kernel has, and numbers that code computes with least of all.
NUMBER_SECONDS = 8.0
NUMBERS = (
    -1, -(1 << 31), -(1 << 63), 1 << 63, (1 << 64) - 1, 0, 1, 2, 7, 31, 33, 63, 64, 65, 255, 4097,
    1 << 32, 0xFFFF_8880_0000_1000,
)  # fmt: skip

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
    """An eBPF object under a wrong id; a parameter without a name; a timer that calls data, and
    one of another bucket."""
    guest = liar.guest
    rows = guest.bpf()
    liar.set("bpf_map", "id", rows[-1].address, 77)
    assert len(guest.bpf()) == len(rows) - 1
    timers = guest.timers()
    assert {timer.kind for timer in timers[:2]} == {"wheel"}
    liar.set("timer_list", "function", timers[0].address, liar.room)
    liar.set("timer_list", "flags", timers[1].address, 0xABC0_0000)
    assert not {t.address for t in timers[:2]} & {timer.address for timer in guest.timers()}
    quickly(guest.sysctl)
    wrong = {"unreadable bpf_map", "unreadable timer", "timer that is not of its wheel"}
    assert wrong <= whats(guest)


def test_members_hold_any_number(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are the guest's: what is unsigned in C may be below zero here, and of any size."""
    real, dice, share = Layout.lists, random.Random(1), 0.0

    def lists(
        self: Layout, space: AddressSpace, addresses: Sequence[int], faults: Any = None
    ) -> dict[str, list[Any]]:
        columns = real(self, space, addresses, faults)
        for name, column in columns.items():
            if dice.random() < 3 * share:
                columns[name] = [
                    dice.choice(NUMBERS) if isinstance(it, int) and dice.random() < share else it
                    for it in column
                ]
        return columns

    monkeypatch.setattr(Layout, "lists", lists)
    end = time.monotonic() + NUMBER_SECONDS
    for seed in range(1000):
        dice.seed(seed)
        share = (0.01, 0.05, 0.2, 0.5)[seed % 4]
        for _, step in steps(liar.guest):
            with contextlib.suppress(VirtIntrospectError):
                step()
        if time.monotonic() > end:
            break
