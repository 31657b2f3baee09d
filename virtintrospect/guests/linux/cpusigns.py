"""What wakes each CPU, and signs that its host does not let it run when it should.

Timer interrupts (kernel/time/hrtimer.c) and ways into idle (kernel/time/tick-sched.c) are
counted by the kernel. Who waits for a spinlock stands in a queue, for which each CPU has nodes
(kernel/locking/qspinlock.c). A CPU that is busy notes the time at each tick: one that has not
for long was not running, and with its preemption count above zero, it held a lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux import percpu, schedclock

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.model import CpuSigns

_MILLISECOND = 1_000_000
#: PREEMPT_NEED_RESCHED of x86 (arch/x86/include/asm/preempt.h) is no count.
_COUNT = 0x7FFF_FFFF
_QUEUE = {
    "curr": "curr",
    "idle": "idle",
    "clock": "clock",
    # Where the architecture keeps the count with the task: a union on arm64.
    "preempt": "curr.thread_info.preempt.count|curr.thread_info.preempt_count?",
}


def cpu_signs(guest: LinuxGuest) -> list[CpuSigns]:
    """The CPUs that are online. What this kernel does not count is unknown."""
    from virtintrospect.model import CpuSigns

    cpus = percpu.online(guest)
    offsets = list(cpus.values())
    queues = _rows(guest, "rq", "runqueues", _QUEUE, offsets)
    moment = schedclock.now(guest)
    wakes = _rows(guest, "hrtimer_cpu_base", "hrtimer_bases", {"events": "nr_events?"}, offsets)
    members = {"calls": "idle_calls?", "sleeps": "idle_sleeps?"}
    ticks = _rows(guest, "tick_sched", "tick_cpu_sched", members, offsets)
    # The first of the nodes counts how many of them are in use.
    locks = _rows(guest, "qnode", "qnodes", {"count": "mcs.count"}, offsets)
    counts = _preempt_counts(guest, offsets)
    found = []
    for index, cpu in enumerate(cpus):
        queue, clock = queues[index], queues[index].get("clock")
        busy = None
        if None not in (queue.get("curr"), queue.get("idle")):
            busy = queue["curr"] != queue["idle"]
        count = counts[index] if counts else queue.get("preempt")
        waits = locks[index].get("count")
        found.append(
            CpuSigns(
                cpu=cpu,
                timer_interrupts=wakes[index].get("events"),
                idle_calls=ticks[index].get("calls"),
                idle_sleeps=ticks[index].get("sleeps"),
                busy=busy,
                clock_age=max(0, moment - clock) // _MILLISECOND if moment and clock else None,
                preempt_count=None if count is None else count & _COUNT,
                # Interrupts that wait, too, have a node each: four at most.
                spins=None if waits is None else 0 < waits <= 4,
            )
        )
    return found


def _preempt_counts(guest: LinuxGuest, offsets: list[int]) -> list[int | None]:
    """On x86 the count is the CPU's, in ``pcpu_hot`` from 6.2 to 6.14; elsewhere nothing."""
    if "pcpu_hot" in guest.symbols and guest.types.has("pcpu_hot", "preempt_count"):
        rows = _rows(guest, "pcpu_hot", "pcpu_hot", {"count": "preempt_count"}, offsets)
        return [row.get("count") for row in rows]
    if "__preempt_count" not in guest.symbols:
        return []
    places = percpu.addresses(guest, guest.symbols.address("__preempt_count"), offsets)
    try:
        data = guest.kernel.gather(places, 4)
    except VirtIntrospectError:
        return []
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def _rows(
    guest: LinuxGuest, name: str, symbol: str, members: dict[str, str], offsets: list[int]
) -> list[dict[str, Any]]:
    """Members of each CPU's copy; nothing of a variable or structure that is not there."""
    try:
        layout = guest.layout(name, members, text=())
        places = percpu.addresses(guest, guest.symbols.address(symbol), offsets)
    except VirtIntrospectError:
        return [{} for _ in offsets]
    columns = layout.lists(guest.kernel, places, [])
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
