"""The counters of /proc/vmstat (vmstat_start() of mm/vmstat.c).

Their names are those of the kernel's own array ``vmstat_text``: zones' counters, NUMA events,
nodes' counters, dirty limits, and events, which each CPU counts for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.guests.linux import percpu
from virtintrospect.guests.linux.counters import Counters, items, longs, number
from virtintrospect.model import Counter

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Longer than any name of a counter.
_LONGEST_NAME = 64


class _Section(NamedTuple):
    """Counters that stand behind one another, and how they are read."""

    total: int
    read: Callable[[], list[int]]


def vmstat(guest: LinuxGuest, names: Collection[bytes] | None = None) -> list[Counter]:
    """The rows of ``vmstat``, in the order of /proc/vmstat.

    :param names: only counters whose names begin with one of these; what has none of them is
        not read.
    """
    counters = Counters(guest)
    sections = [_zones(guest, counters), _numa(guest, counters), _nodes(guest, counters)]
    sections += [_limits(guest, counters), _events(guest)]
    table = guest.symbols.address("vmstat_text")
    known = _names(guest, table, sum(section.total for section in sections))
    wanted = None if names is None else tuple(names)
    rows, first = [], 0
    for section in sections:
        mine = [
            (first + index, name)
            for index, name in enumerate(known[first : first + section.total])
            if wanted is None or (name is not None and name.startswith(wanted))
        ]
        values = section.read() if mine else []
        for index, name in mine:
            if name is None:
                guest.note(
                    f"counter {index} of vmstat has no readable name",
                    table + guest.kernel.pointer_size * index,
                )
            else:
                rows.append(Counter(name, values[index - first]))
        first += section.total
    unstable = b"nr_unstable"  # kept for old readers since 5.8
    if "NR_UNSTABLE_NFS" not in guest.types.enumerators("node_stat_item") and (
        wanted is None or unstable.startswith(wanted)
    ):
        rows.append(Counter(unstable, 0))
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


def _zones(guest: LinuxGuest, counters: Counters) -> _Section:
    names = guest.types.enumerators("zone_stat_item")
    total = items(names, "NR_VM_ZONE_STAT_ITEMS")
    return _Section(total, lambda: _ordered(counters.zone, names, total))


def _nodes(guest: LinuxGuest, counters: Counters) -> _Section:
    names = guest.types.enumerators("node_stat_item")
    total = items(names, "NR_VM_NODE_STAT_ITEMS")

    def read() -> list[int]:
        shown = {
            name: value // counters.huge_page if counters.huge(name) else value
            for name, value in counters.node.items()
        }
        return _ordered(shown, names, total)

    return _Section(total, read)


def _ordered(values: dict[str, int], names: dict[str, int], total: int) -> list[int]:
    found = [0] * total
    for name, index in names.items():
        if name in values:
            found[index] = values[name]
    return found


def _numa(guest: LinuxGuest, counters: Counters) -> _Section:
    """NUMA events: since 5.14 CPUs hold what the reader of /proc has them add to the sums."""
    for symbol in ("vm_numa_event", "vm_numa_stat"):
        if symbol in guest.symbols and "numa_stat_item" in guest.types:
            break
    else:
        return _Section(0, list)  # built without CONFIG_NUMA
    names = guest.types.enumerators("numa_stat_item")
    count = "NR_VM_NUMA_EVENT_ITEMS"
    total = items(names, count if count in names else "NR_VM_NUMA_STAT_ITEMS")
    return _Section(total, lambda: _numa_values(guest, counters, symbol, total))


def _numa_values(guest: LinuxGuest, counters: Counters, symbol: str, total: int) -> list[int]:
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


def _limits(guest: LinuxGuest, counters: Counters) -> _Section:
    """Dirty limits, and since 6.12 the pages that ``struct page`` itself takes."""
    if "vm_stat_item" in guest.types:
        names = guest.types.enumerators("vm_stat_item")
        total = items(names, "NR_VM_STAT_ITEMS")
    else:
        names = guest.types.enumerators("writeback_stat_item")
        total = items(names, "NR_VM_WRITEBACK_STAT_ITEMS")

    def read() -> list[int]:
        background, limit = dirty_limits(guest, counters)
        values = {"NR_DIRTY_THRESHOLD": limit, "NR_DIRTY_BG_THRESHOLD": background}
        for name, symbol in _MEMMAP.items():
            if name in names:
                values[name] = number(guest, symbol)
        return _ordered(values, {n: i for n, i in names.items() if 0 <= i < total}, total)

    return _Section(total, read)


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
    """``vm_event_states`` of all CPUs, by ``enum vm_event_item``."""
    return _events(guest).read()


def _events(guest: LinuxGuest) -> _Section:
    """``vm_event_states`` of all CPUs, summed; sectors become KiB."""
    if "vm_event_states" not in guest.symbols:
        return _Section(0, list)  # built without CONFIG_VM_EVENT_COUNTERS
    names = guest.types.enumerators("vm_event_item")
    total = items(names, "NR_VM_EVENT_ITEMS")
    if guest.types.sizeof("vm_event_state") < guest.kernel.pointer_size * total:
        raise CorruptDataError(f"{total} events in too small a structure", 0)
    return _Section(total, lambda: _event_values(guest, names, total))


def _event_values(guest: LinuxGuest, names: dict[str, int], total: int) -> list[int]:
    base = guest.symbols.address("vm_event_states")
    values = percpu.sums(guest, base, list(percpu.online(guest).values()), total)
    for name in ("PGPGIN", "PGPGOUT"):
        index = names.get(name, total)
        if 0 <= index < total:
            values[index] //= 2
    return values
