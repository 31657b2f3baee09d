"""The clock of the scheduler (kernel/sched/clock.c), as far as a look from outside shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux import percpu, system
from virtintrospect.guests.linux.counters import number

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest


def now(guest: LinuxGuest) -> int:
    """The latest moment that is noted anywhere, in nanoseconds; 0 where none is.

    That is the last event on a run queue, or the last timer tick: a timekeeper's time becomes
    that of the scheduler by ``__gtod_offset``. A guest that sleeps may have noted its last
    moment seconds ago.
    """
    layout = guest.layout("rq", {"clock": "clock"}, text=())
    places = percpu.addresses(
        guest, guest.symbols.address("runqueues"), list(percpu.online(guest).values())
    )
    seen = [clock for clock in layout.lists(guest.kernel, places, [])["clock"] if clock]
    monotonic = system.monotonic_time(guest)
    if monotonic is not None and "__gtod_offset" in guest.symbols:
        seen.append(monotonic + number(guest, "__gtod_offset", 8, signed=True))
    return max(seen, default=0)
