"""The counters of memory management that /proc/meminfo and /proc/vmstat share (mm/vmstat.c).

Each zone, node and CPU counts for itself; what /proc shows are the global sums, to which the
CPUs add their differences now and then. The sums are read here as they are: whoever reads
/proc in the guest sees the same lag.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError, NotFoundError

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Bytes of a page.
PAGE = 4096
#: Pages of a huge page that one entry of a page middle directory maps (HPAGE_PMD_NR).
HUGE_PAGE = 512
#: More counters of one kind than any kernel has.
MAX_ITEMS = 1024
#: CONFIG_NODES_SHIFT is at most 10; a node has at most 5 zones on x86-64.
_MAX_NODES, _MAX_ZONES = 1024, 16
_MASK = (1 << 64) - 1
#: Counters of huge pages, which /proc shows as such (vmstat_item_print_in_thp()).
_HUGE = ("NR_ANON_THPS", "NR_FILE_THPS", "NR_SHMEM_THPS", "NR_SHMEM_PMDMAPPED", "NR_FILE_PMDMAPPED")


class Zone(NamedTuple):
    """What is wanted of a ``struct zone``."""

    address: int
    #: low_wmark_pages(): pages, the boost included.
    low: int
    #: Per-CPU address of its ``struct per_cpu_zonestat``; 0 before 5.14.
    stats: int


def number(guest: LinuxGuest, symbol: str, size: int = 8, *, signed: bool = False) -> int:
    """The integer that a global variable holds.

    :raises SymbolNotFoundError: there is no such variable.
    :raises FaultError: it cannot be read.
    """
    data = guest.kernel.read(guest.symbols.address(symbol), size)
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
                    found[name] *= HUGE_PAGE
        return found

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
        pointers = guest.kernel.gather(
            [guest.symbols.address("node_data") + types.pointer_size * node for node in nodes],
            types.pointer_size,
        )
        first = types.offsetof("pglist_data", "node_zones")
        size = types.sizeof("zone")
        count = types.resolve("pglist_data", "node_zones")[-1].count
        if not 0 < count <= _MAX_ZONES:
            raise CorruptDataError(f"nodes with {count} zones", 0)
        addresses = [
            (pointer + first + index * size) & _MASK
            for pointer in types.words(pointers)
            for index in range(count)
        ]
        low = types.enumerators("zone_watermarks").get("WMARK_LOW", 1)
        members = {
            "low": f"_watermark[{low}]|watermark[{low}]",
            "boost": "watermark_boost?",
            "stats": "per_cpu_zonestats?",
        }
        columns = guest.layout("zone", members, text=()).lists(guest.kernel, addresses)
        return [
            Zone(address, low + (boost or 0), stats or 0)
            for address, low, boost, stats in zip(addresses, *columns.values(), strict=True)
        ]

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
        data = guest.kernel.read(guest.symbols.address(symbol), 8 * total)
        values = struct.unpack(f"<{total}q", data)
        return {name: max(0, values[i]) for name, i in names.items() if 0 <= i < total}


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
