"""The counters of memory management that /proc/meminfo and /proc/vmstat share (mm/vmstat.c).

Each zone, node and CPU counts for itself; what /proc shows are the global sums, to which the
CPUs add their differences now and then. The sums are read here as they are: whoever reads
/proc in the guest sees the same lag.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError, NotFoundError
from virtintrospect.guests.linux import percpu

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: More counters of one kind than any kernel has.
MAX_ITEMS = 1024
#: CONFIG_NODES_SHIFT is at most 10; a node has at most 5 zones on x86-64.
_MAX_NODES, _MAX_ZONES = 1024, 16
#: Counters of huge pages, which /proc shows as such (vmstat_item_print_in_thp()).
_HUGE = ("NR_ANON_THPS", "NR_FILE_THPS", "NR_SHMEM_THPS", "NR_SHMEM_PMDMAPPED", "NR_FILE_PMDMAPPED")


class Zone(NamedTuple):
    """What is wanted of a ``struct zone``."""

    address: int
    #: low_wmark_pages(): pages, the boost included.
    low: int
    #: Per-CPU address of its ``struct per_cpu_zonestat``; 0 before 5.14.
    stats: int
    #: Per-CPU address of its ``struct per_cpu_pages``; 0 before 5.14.
    pages: int


def number(guest: LinuxGuest, symbol: str, size: int = 0, *, signed: bool = False) -> int:
    """The integer that a global variable holds.

    :param size: bytes of it; without, those of a ``long``.
    :raises SymbolNotFoundError: there is no such variable.
    :raises FaultError: it cannot be read.
    """
    data = guest.kernel.read(guest.symbols.address(symbol), size or guest.kernel.pointer_size)
    return int.from_bytes(data, "little", signed=signed)


class Counters:
    """The global counters of one moment, by the names of the kernel's enums, in pages."""

    def __init__(self, guest: LinuxGuest) -> None:
        self._guest = guest

    def __getitem__(self, name: str) -> int:
        """A zone's or node's counter, summed; some have moved from zones to nodes.

        :raises NotFoundError: this kernel has no such counter.
        """
        value = self.get(name)
        if value is None:
            raise NotFoundError(f"the guest's kernel has no counter {name}")
        return value

    def get(self, name: str) -> int | None:
        """As ``[name]``; ``None`` where this kernel has no such counter."""
        return self.zone.get(name, self.node.get(name))

    @cached_property
    def zone(self) -> dict[str, int]:
        """``vm_zone_stat`` by ``enum zone_stat_item``."""
        return self._array("vm_zone_stat", "zone_stat_item", "NR_VM_ZONE_STAT_ITEMS")

    @cached_property
    def node(self) -> dict[str, int]:
        """``vm_node_stat`` by ``enum node_stat_item``; huge pages count as the pages they have.

        They do in the kernel since 5.12 (commit 69473e5de873; NR_SWAPCACHE came with it).
        """
        found = self._array("vm_node_stat", "node_stat_item", "NR_VM_NODE_STAT_ITEMS")
        if not self.huge_in_pages:
            for name in _HUGE:
                if name in found:
                    found[name] *= self.huge_page
        return found

    @cached_property
    def huge_page(self) -> int:
        """Pages of a huge page that one entry of a page middle directory maps (HPAGE_PMD_NR)."""
        last, above = self._guest.mapping.mode.levels[:-3:-1]
        return 1 << (above.shift - last.shift)

    @cached_property
    def huge_in_pages(self) -> bool:
        """Whether the kernel itself counts huge pages in pages."""
        types = self._guest.types
        later = types.has("zone", "per_cpu_zonestats")  # 5.14, without CONFIG_SWAP too
        return later or "NR_SWAPCACHE" in types.enumerators("node_stat_item")

    def huge(self, name: str) -> bool:
        """Whether /proc/vmstat shows this counter in huge pages."""
        return name in _HUGE

    @cached_property
    def zones(self) -> list[Zone]:
        """Every zone of every node that is online, populated or not (for_each_zone())."""
        guest, types = self._guest, self._guest.types
        nodes = _bits(guest.kernel.read(*self._online_nodes()))
        pointers = self._nodes(nodes)
        first = types.offsetof("pglist_data", "node_zones")
        size = types.sizeof("zone")
        count = types.resolve("pglist_data", "node_zones")[-1].count
        if not 0 < count <= _MAX_ZONES:
            raise CorruptDataError(f"nodes with {count} zones", 0)
        addresses = [
            (pointer + first + index * size) & guest.kernel.last
            for pointer in pointers
            for index in range(count)
        ]
        low = types.enumerators("zone_watermarks").get("WMARK_LOW", 1)
        members = {
            "low": f"_watermark[{low}]|watermark[{low}]",
            "boost": "watermark_boost?",
            "stats": "per_cpu_zonestats?",
            "pages": "per_cpu_pageset?",
        }
        columns = guest.layout("zone", members, text=()).lists(guest.kernel, addresses)
        return [
            Zone(address, low + (boost or 0), stats or 0, pages or 0)
            for address, low, boost, stats, pages in zip(addresses, *columns.values(), strict=True)
        ]

    def on_cpus(self) -> int:
        """Free pages that CPUs keep for themselves beyond what each always may.

        Since 6.7 a CPU that allocates and frees much keeps up to an eighth of a zone
        (zone_highsize() of mm/page_alloc.c), and while it sleeps it gives nothing back. Such pages
        are in neither MemFree nor MemAvailable; the kernel takes them before it runs short
        (nr_pcp_high(), drain_all_pages()). Before 6.7 there are none.
        """
        guest = self._guest
        if not guest.types.has("per_cpu_pages", "high_min"):
            return 0
        cpus = list(percpu.online(guest).values())
        lists = [
            place
            for zone in self.zones
            if zone.pages
            for place in percpu.addresses(guest, zone.pages, cpus)
        ]
        members = ["count", "high_min"]
        columns = guest.layout("per_cpu_pages", members, text=()).lists(guest.kernel, lists)
        return sum(max(0, count - least) for count, least in zip(*columns.values(), strict=True))

    @cached_property
    def _high(self) -> list[dict[str, int]]:
        """Pages of zones that the kernel has not mapped for good (``is_highmem()``)."""
        guest, types = self._guest, self._guest.types
        items = types.enumerators("zone_stat_item")
        mark = types.enumerators("zone_watermarks").get("WMARK_HIGH", 2)
        members = {
            name: f"vm_stat[{items.get(f'NR_{name}', 0)}].counter"
            for name in ("FREE_PAGES", "ZONE_INACTIVE_FILE", "ZONE_ACTIVE_FILE")
        }
        members |= {"name": "name", "boost": "watermark_boost?", "managed": "managed_pages.counter"}
        members |= {"mark": f"_watermark[{mark}]|watermark[{mark}]"}
        addresses = [zone.address for zone in self.zones]
        columns = guest.layout("zone", members, text=()).lists(guest.kernel, addresses)
        names = guest.kernel.strings(columns["name"], 16)
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return [row for name, row in zip(names, rows, strict=True) if name == b"HighMem"]

    @property
    def high_managed(self) -> int:
        """Pages that the kernel manages there (totalhigh_pages())."""
        return sum(max(0, zone["managed"]) for zone in self._high)

    @property
    def high_free(self) -> int:
        """Free pages there (nr_free_highpages())."""
        return sum(max(0, zone["FREE_PAGES"]) for zone in self._high)

    @property
    def high_dirtyable(self) -> int:
        """Pages there that writers may dirty (highmem_dirtyable_memory(), mm/page-writeback.c)."""
        return sum(
            max(0, max(0, zone["FREE_PAGES"]) - zone["mark"] - (zone["boost"] or 0))
            + max(0, zone["ZONE_INACTIVE_FILE"])
            + max(0, zone["ZONE_ACTIVE_FILE"])
            for zone in self._high
        )

    def _nodes(self, numbers: list[int]) -> tuple[int, ...]:
        """Addresses of ``struct pglist_data``: without NUMA there is one, and no table."""
        guest = self._guest
        if "node_data" not in guest.symbols:
            return (guest.symbols.address("contig_page_data"),)
        table = guest.symbols.address("node_data")
        places = [table + guest.kernel.pointer_size * number for number in numbers]
        return guest.kernel.gather_pointers(places)

    def _online_nodes(self) -> tuple[int, int]:
        """Address and bytes of ``node_states[N_ONLINE]``."""
        guest = self._guest
        size = min(guest.types.sizeof("nodemask_t"), _MAX_NODES // 8)
        online = guest.types.enumerators("node_states").get("N_ONLINE", 1)
        return guest.symbols.address("node_states") + online * size, size

    def _array(self, symbol: str, enum: str, count: str) -> dict[str, int]:
        """An array of counters by the names of an enum, none of them below zero."""
        guest = self._guest
        names = guest.types.enumerators(enum)
        total = items(names, count)
        values = longs(guest, guest.symbols.address(symbol), total)
        return {name: max(0, values[i]) for name, i in names.items() if 0 <= i < total}


def longs(guest: LinuxGuest, address: int, count: int) -> list[int]:
    """``count`` signed ``long`` values, one behind the other."""
    half = (guest.kernel.last + 1) // 2
    return [(value ^ half) - half for value in guest.kernel.pointers(address, count)]


def items(names: dict[str, int], count: str) -> int:
    """How many counters an enum names: its enumerator ``count``.

    :raises CorruptDataError: it is missing, or makes no sense.
    """
    total = names.get(count, 0)
    if not 0 < total <= MAX_ITEMS:
        raise CorruptDataError(f"{total} counters ({count})", 0)
    return total


def _bits(mask: bytes) -> list[int]:
    bits = int.from_bytes(mask, "little")
    return [number for number in range(8 * len(mask)) if bits >> number & 1]
