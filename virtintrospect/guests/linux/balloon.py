"""Memory statistics as the balloon driver reports them, without the driver.

``update_balloon_stats()`` of drivers/virtio/virtio_balloon.c says what they are made of, libvirt
(qemuMonitorJSONGetBalloonInfo()) what they are called: KiB, and events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux.meminfo import Memory
from virtintrospect.guests.linux.vmstat import events
from virtintrospect.model import BalloonStats

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest


def balloon_stats(guest: LinuxGuest) -> BalloonStats:
    """The guest's part of the record of ``dommemstat``."""
    memory, kib = Memory(guest), guest.page_size // 1024
    names = guest.types.enumerators("vm_event_item")
    values = events(guest)

    def event(name: str, unit: int = 1) -> int | None:
        index = names.get(name, -1)
        return values[index] * unit if 0 <= index < len(values) else None

    return BalloonStats(
        swap_in=event("PSWPIN", kib),
        swap_out=event("PSWPOUT", kib),
        major_fault=event("PGMAJFAULT"),
        minor_fault=event("PGFAULT"),
        unused=memory.counters["NR_FREE_PAGES"] * kib,
        available=memory.total * kib,
        usable=memory.available * kib,
        disk_caches=memory.counters["NR_FILE_PAGES"] * kib,
        hugetlb_pgalloc=event("HTLB_BUDDY_PGALLOC"),
        hugetlb_pgfail=event("HTLB_BUDDY_PGALLOC_FAIL"),
    )
