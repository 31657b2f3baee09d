"""What a kernel counts in pages, with pages of 16 and 64 KiB, in memory laid out by hand.

Of 64 KiB no kernel is to be had here; with 16 KiB a real one is compared with its own word.
"""

from __future__ import annotations

import struct

import pytest

from tests.unit.built import BASE, BuiltKernel
from virtintrospect.guests.linux.counters import Counters
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.vmstat import dirty_limits

_TYPES = {
    "list_head": "list_head *next; list_head *prev",
    "atomic_long": "long counter",
    "kmem_cache_order_objects": "u32 x",
    "kmem_cache": "char *name; u32 size; kmem_cache_order_objects oo; list_head list;"
    " kmem_cache_node *node[1]",
    "kmem_cache_node": "atomic_long nr_slabs; atomic_long total_objects; u64 nr_partial;"
    " list_head partial",
    "slab": "kmem_cache *slab_cache; list_head slab_list; u32 objects; u32 inuse",
}
_ZONE = {"NR_FREE_PAGES": 0, "NR_VM_ZONE_STAT_ITEMS": 1}
_NODE = {
    name: number
    for number, name in enumerate(
        (
            "NR_INACTIVE_FILE", "NR_ACTIVE_FILE", "NR_ANON_THPS", "NR_KERNEL_STACK_KB",
            "NR_SWAPCACHE", "NR_VM_NODE_STAT_ITEMS",
        )
    )
}  # fmt: skip
#: 1, 2 and 3 pages of files and in huge pages, 64 KiB of stacks.
_COUNTS = (1, 2, 3, 64, 0)


@pytest.fixture(params=[14, 16])
def shift(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def guest(shift: int) -> LinuxGuest:
    kernel = BuiltKernel(_TYPES, {"zone_stat_item": _ZONE, "node_stat_item": _NODE})
    kernel.number("vm_zone_stat", 100)
    kernel.symbols["vm_node_stat"] = kernel.room(8 * len(_COUNTS))
    kernel.write(kernel.symbols["vm_node_stat"], struct.pack(f"<{len(_COUNTS)}q", *_COUNTS))
    for name, value in {
        "_totalram_pages": 1000, "totalreserve_pages": 10, "total_swap_pages": 7,
        "sysctl_overcommit_kbytes": 2048, "vm_dirty_bytes": 1_000_001, "dirty_background_bytes": 0,
    }.items():  # fmt: skip
        kernel.number(name, value)
    for name, value in {
        "pcpu_nr_populated": 2, "pcpu_nr_units": 3, "dirty_background_ratio": 10,
    }.items():  # fmt: skip
        kernel.number(name, value, 4)
    text = kernel.string(b"dentry")
    node = kernel.make("kmem_cache_node", {"nr_slabs.counter": 5, "total_objects.counter": 40})
    cache = kernel.make("kmem_cache", {"name": text, "size": 192, "oo.x": 1 << 16 | 8,
                                       "node[0]": node})  # fmt: skip
    partial = kernel.at("kmem_cache_node", node, "partial")
    kernel.link(partial, [])
    kernel.symbols["slab_caches"] = kernel.room(16)
    kernel.link(kernel.symbols["slab_caches"], [kernel.at("kmem_cache", cache, "list")])
    return kernel.guest(page_shift=shift)


def test_the_image_is_read_through_its_tables(guest: LinuxGuest, shift: int) -> None:
    assert (guest.page_shift, guest.page_size) == (shift, 1 << shift)
    assert guest.kernel.mode.name == f"aarch64-{1 << shift - 10}k-48"
    assert guest.kernel.walk(BASE).page_size == 1 << shift
    assert guest.banner.startswith(b"Linux version")


def test_memory(guest: LinuxGuest, shift: int) -> None:
    found = guest.meminfo()
    assert found.memory_total == 1000 << shift
    assert found.memory_free == 100 << shift
    assert found.commit_limit == (2048 << 10) + (7 << shift)
    assert found.percpu == 6 << shift
    assert found.kernel_stack == 64 << 10  # counted in KiB, whatever the page


def test_huge_pages_have_the_pages_of_a_table(guest: LinuxGuest, shift: int) -> None:
    """A page middle directory maps 32 MiB with pages of 16 KiB, 512 MiB with 64 KiB."""
    assert Counters(guest).huge_page == 1 << (shift - 3)
    assert Counters(guest).huge_page << shift == {14: 32 << 20, 16: 512 << 20}[shift]


def test_dirty_limits(guest: LinuxGuest, shift: int) -> None:
    """domain_dirty_limits(): bytes are rounded up to pages, a ratio is one of a page's bytes."""
    usable = 100 - 10 + 1 + 2 + 1
    background = (10 << shift) // 100 * usable >> shift
    assert dirty_limits(guest, Counters(guest)) == (background, -(-1_000_001 >> shift))


def test_slabs(guest: LinuxGuest, shift: int) -> None:
    (row,) = guest.slabs()
    assert (row.num_slabs, row.pagesperslab, row.size) == (5, 2, 10 << shift)
