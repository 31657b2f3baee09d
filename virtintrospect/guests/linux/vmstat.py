"""The counters of /proc/vmstat (vmstat_start() of mm/vmstat.c).

Their names are those of the kernel's own array ``vmstat_text``: zones' counters, NUMA events,
nodes' counters, dirty limits, and events, which each CPU counts for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.guests.linux import percpu
from virtintrospect.guests.linux.counters import Counters, items, longs, number
from virtintrospect.model import Counter

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Longer than any name of a counter.
_LONGEST_NAME = 64


def vmstat(guest: LinuxGuest) -> list[Counter]:
    """The rows of ``vmstat``, in the order of /proc/vmstat."""
    counters = Counters(guest)
    values = _zones(guest, counters) + _numa(guest, counters) + _nodes(guest, counters)
    values += _limits(guest, counters) + events(guest)
    table = guest.symbols.address("vmstat_text")
    names = _names(guest, table, len(values))
    rows = []
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        if name is None:
            guest.note(
                f"counter {index} of vmstat has no readable name",
                table + guest.kernel.pointer_size * index,
            )
        else:
            rows.append(Counter(name, value))
    if "NR_UNSTABLE_NFS" not in guest.types.enumerators("node_stat_item"):
        rows.append(Counter(b"nr_unstable", 0))  # kept for old readers since 5.8
    return rows


def _names(guest: LinuxGuest, table: int, count: int) -> list[bytes | None]:
    """The kernel's names of its counters: constants, read once where all of them can be."""
    known = _KNOWN.get(guest)
    if known is not None and len(known) == count:
        return known
    names = guest.kernel.strings(guest.kernel.pointers(table, count), _LONGEST_NAME)
    if None not in names:
        _KNOWN[guest] = names
    return names


#: Names by guest.
_KNOWN: WeakKeyDictionary[LinuxGuest, list[bytes | None]] = WeakKeyDictionary()


def _zones(guest: LinuxGuest, counters: Counters) -> list[int]:
    names = guest.types.enumerators("zone_stat_item")
    total = items(names, "NR_VM_ZONE_STAT_ITEMS")
    return _ordered(counters.zone, names, total)


def _nodes(guest: LinuxGuest, counters: Counters) -> list[int]:
    names = guest.types.enumerators("node_stat_item")
    total = items(names, "NR_VM_NODE_STAT_ITEMS")
    shown = {
        name: value // counters.huge_page if counters.huge(name) else value
        for name, value in counters.node.items()
    }
    return _ordered(shown, names, total)


def _ordered(values: dict[str, int], names: dict[str, int], total: int) -> list[int]:
    found = [0] * total
    for name, index in names.items():
        if name in values:
            found[index] = values[name]
    return found


def _numa(guest: LinuxGuest, counters: Counters) -> list[int]:
    """NUMA events: since 5.14 CPUs hold what the reader of /proc has them add to the sums."""
    for symbol in ("vm_numa_event", "vm_numa_stat"):
        if symbol in guest.symbols and "numa_stat_item" in guest.types:
            break
    else:
        return []  # built without CONFIG_NUMA
    names = guest.types.enumerators("numa_stat_item")
    count = "NR_VM_NUMA_EVENT_ITEMS"
    total = items(names, count if count in names else "NR_VM_NUMA_STAT_ITEMS")
    values = [max(0, value) for value in longs(guest, guest.symbols.address(symbol), total)]
    if not guest.types.has("per_cpu_zonestat", "vm_numa_event"):
        return values
    offset = guest.types.offsetof("per_cpu_zonestat", "vm_numa_event")
    cpus = list(percpu.online(guest).values())
    for zone in counters.zones:
        if zone.stats:
            try:
                held = percpu.sums(guest, zone.stats + offset, cpus, total)
            except FaultError as error:
                guest.note("unreadable counters of a zone", error.address)
                continue
            values = [a + b for a, b in zip(values, held, strict=True)]
    return values


def _limits(guest: LinuxGuest, counters: Counters) -> list[int]:
    """Dirty limits, and since 6.12 the pages that ``struct page`` itself takes."""
    if "vm_stat_item" in guest.types:
        names = guest.types.enumerators("vm_stat_item")
        total = items(names, "NR_VM_STAT_ITEMS")
    else:
        names = guest.types.enumerators("writeback_stat_item")
        total = items(names, "NR_VM_WRITEBACK_STAT_ITEMS")
    background, limit = dirty_limits(guest, counters)
    values = {"NR_DIRTY_THRESHOLD": limit, "NR_DIRTY_BG_THRESHOLD": background}
    for name, symbol in _MEMMAP.items():
        if name in names:
            values[name] = number(guest, symbol)
    return _ordered(values, {n: i for n, i in names.items() if 0 <= i < total}, total)


_MEMMAP = {"NR_MEMMAP_PAGES": "nr_memmap_pages", "NR_MEMMAP_BOOT_PAGES": "nr_memmap_boot_pages"}


def dirty_limits(guest: LinuxGuest, counters: Counters) -> tuple[int, int]:
    """Background and hard limit of dirty pages: global_dirty_limits() of mm/page-writeback.c."""
    free = counters["NR_FREE_PAGES"]
    usable = free - min(free, number(guest, "totalreserve_pages"))
    usable += counters["NR_INACTIVE_FILE"] + counters["NR_ACTIVE_FILE"]
    if "vm_highmem_is_dirtyable" in guest.symbols and not number(
        guest, "vm_highmem_is_dirtyable", 4
    ):
        usable -= min(usable, counters.high_dirtyable)
    usable += 1
    limit = _limit(guest, "vm_dirty_bytes", "vm_dirty_ratio", usable)
    background = _limit(guest, "dirty_background_bytes", "dirty_background_ratio", usable)
    if background >= limit:
        background = limit // 2
    return background, limit


def _limit(guest: LinuxGuest, size: str, ratio: str, usable: int) -> int:
    wanted = number(guest, size)
    if wanted:
        return -(-wanted // guest.page_size)
    return number(guest, ratio, 4) * guest.page_size // 100 * usable // guest.page_size


def events(guest: LinuxGuest) -> list[int]:
    """``vm_event_states`` of all CPUs, summed; sectors become KiB."""
    if "vm_event_states" not in guest.symbols:
        return []  # built without CONFIG_VM_EVENT_COUNTERS
    names = guest.types.enumerators("vm_event_item")
    total = items(names, "NR_VM_EVENT_ITEMS")
    if guest.types.sizeof("vm_event_state") < guest.kernel.pointer_size * total:
        raise CorruptDataError(f"{total} events in too small a structure", 0)
    base = guest.symbols.address("vm_event_states")
    values = percpu.sums(guest, base, list(percpu.online(guest).values()), total)
    for name in ("PGPGIN", "PGPGOUT"):
        index = names.get(name, total)
        if 0 <= index < total:
            values[index] //= 2
    return values
