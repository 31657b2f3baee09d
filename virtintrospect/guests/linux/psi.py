"""Pressure stall information (kernel/sched/psi.c), as /proc/pressure shows it.

CPUs measure for how long tasks were stalled. Every two seconds, and whenever somebody reads
/proc/pressure, the kernel adds what the CPUs have gathered to the totals, and when two seconds
are over it lets the averages move. An idle guest stops doing so. What has been gathered since
is therefore added up here just as psi_show() would do it, on a copy of the numbers.

Reading gives no clock: "now" is the latest moment that the guest itself has noted, its last
timer tick or the last event on a run queue. A busy guest notes one every few milliseconds. One
that sleeps does so when it next wakes, seconds later at most; until then what we show is what
/proc/pressure would have shown at that moment.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError, NotFoundError
from virtintrospect.guests.linux import percpu, system
from virtintrospect.guests.linux.counters import number
from virtintrospect.guests.linux.cpu import FIXED_SHIFT, fixed
from virtintrospect.model import Pressure

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

_FIXED_1 = 1 << FIXED_SHIFT
#: EXP_10s, EXP_60s, EXP_300s: how much of an average is left after two seconds.
_EXP = (1677, 1981, 2034)
#: Rows in the order of /proc/pressure, with their enumerators of ``enum psi_states``. The IRQ
#: state is there with CONFIG_IRQ_TIME_ACCOUNTING (6.1), full CPU stalls since 5.13.
_ROWS = {
    ("cpu", "some"): "PSI_CPU_SOME",
    ("cpu", "full"): "PSI_CPU_FULL",
    ("memory", "some"): "PSI_MEM_SOME",
    ("memory", "full"): "PSI_MEM_FULL",
    ("io", "some"): "PSI_IO_SOME",
    ("io", "full"): "PSI_IO_FULL",
    ("irq", "full"): "PSI_IRQ_FULL",
}
#: What psi_show() prints as zeros for the whole system: there the CPU is never fully stalled.
_UNDEFINED = "PSI_CPU_FULL"
_MAX_STATES = 32
_U32 = (1 << 32) - 1


class _Group(NamedTuple):
    """What is wanted of ``struct psi_group``, by state; all times in nanoseconds."""

    last_update: int
    next_update: int
    pcpu: int
    totals: list[int]
    averaged: list[int]
    averages: list[tuple[int, ...]]


class _Clock(NamedTuple):
    """``now`` by the clock of the scheduler, and what is needed to reckon with it."""

    now: int
    #: sched_clock() of the boot CPU, which the averages go by.
    sched_clock: int
    #: Nanoseconds of a sampling period (PSI_FREQ: two seconds and a tick), and of a tick.
    period: int
    tick: int


def pressure(guest: LinuxGuest) -> list[Pressure]:
    """The rows of ``pressure``.

    :raises NotFoundError: the kernel has no PSI, or it was not switched on.
    """
    _check(guest)
    states = guest.types.enumerators("psi_states")
    count = states.get("NR_PSI_STATES", 0)
    if not 1 < count <= _MAX_STATES:
        raise CorruptDataError(f"{count} states of pressure", guest.symbols.address("psi_system"))
    group = _group(guest, count - 1)
    clock = _clock(guest)
    totals = [a + b for a, b in zip(group.totals, _gathered(guest, group, clock), strict=True)]
    averages = _averages(group, totals, clock)
    found = []
    for (resource, kind), state in _ROWS.items():
        index = states.get(state, count)
        if index >= count - 1:
            continue
        if state == _UNDEFINED:
            found.append(Pressure(resource, kind, 0.0, 0.0, 0.0, 0))
            continue
        avg10, avg60, avg300 = map(fixed, averages[index])
        found.append(Pressure(resource, kind, avg10, avg60, avg300, totals[index] // 1000))
    return found


def _check(guest: LinuxGuest) -> None:
    if "psi_system" not in guest.symbols:
        raise NotFoundError("the guest's kernel was built without pressure stall information")
    key = guest.read_global("psi_disabled", {"disabled": "key.enabled.counter"})
    if key["disabled"]:
        raise NotFoundError(
            "the guest's kernel does not measure pressure stalls: it was not switched on",
            hint="boot the guest with psi=1 on its kernel command line",
        )


def _group(guest: LinuxGuest, count: int) -> _Group:
    members = {"last": "avg_last_update", "next": "avg_next_update", "pcpu": "pcpu"}
    row = guest.read_global("psi_system", members)
    # The arrays have two dimensions that BTF of older kernels shows as one: the first part of
    # ``total`` is that of PSI_AVGS, ``avg`` has three numbers a state.
    averages = struct.iter_unpack("<3Q", _member(guest, "avg", 24 * count))
    return _Group(
        last_update=row["last"],
        next_update=row["next"],
        pcpu=row["pcpu"],
        totals=list(struct.unpack(f"<{count}Q", _member(guest, "total", 8 * count))),
        averaged=list(struct.unpack(f"<{count}Q", _member(guest, "avg_total", 8 * count))),
        averages=list(averages),
    )


def _member(guest: LinuxGuest, name: str, size: int) -> bytes:
    at = guest.symbols.address("psi_system") + guest.types.offsetof("psi_group", name)
    return guest.kernel.read(at, size)


def _clock(guest: LinuxGuest) -> _Clock:
    """The latest moment that is noted anywhere, by the clock of the scheduler.

    A timekeeper's time becomes that of the scheduler by ``__gtod_offset``
    (kernel/sched/clock.c).
    """
    period = number(guest, "psi_period")
    tick = period - 2_000_000_000
    if not 0 < tick <= 100_000_000:
        raise CorruptDataError(f"a PSI period of {period} ns", guest.symbols.address("psi_period"))
    layout = guest.layout("rq", {"clock": "clock"}, text=())
    places = percpu.addresses(
        guest.symbols.address("runqueues"), list(percpu.online(guest).values())
    )
    seen = [clock for clock in layout.lists(guest.kernel, places, [])["clock"] if clock]
    monotonic = system.monotonic_time(guest)
    if monotonic is not None and "__gtod_offset" in guest.symbols:
        seen.append(monotonic + number(guest, "__gtod_offset", signed=True))
    now = max(seen, default=0)
    offset = (
        number(guest, "__sched_clock_offset", signed=True)
        if "__sched_clock_offset" in guest.symbols
        else 0
    )
    return _Clock(now, now - offset, period, tick)


def _gathered(guest: LinuxGuest, group: _Group, clock: _Clock) -> list[int]:
    """What the CPUs have measured since the last aggregation: collect_percpu_times().

    A CPU counts by the time in which it was not idle.
    """
    count = len(group.totals)
    sums, weights = [0] * count, 0
    for times in _recent(guest, group, clock, count + 1):
        weight = times[count] // clock.tick  # PSI_NONIDLE is the last state
        weights += weight
        for state in range(count):
            sums[state] += times[state] * weight
    return [total // max(weights, 1) for total in sums]


def _recent(guest: LinuxGuest, group: _Group, clock: _Clock, states: int) -> list[list[int]]:
    """Times of each CPU since the last aggregation, by state: get_recent_times()."""
    layout = guest.layout("psi_group_cpu", {"mask": "state_mask", "start": "state_start"}, text=())
    # Possible CPUs, not those online: what one gathered before it went counts, too.
    places = percpu.addresses(group.pcpu, guest.cpu_offsets)
    columns = layout.lists(guest.kernel, places, [])
    found = []
    times = _arrays(guest, places, "times", states)
    before = _arrays(guest, places, "times_prev", states)
    for mask, start, now, then in zip(*columns.values(), times, before, strict=True):
        if mask is None:
            continue
        running = max(0, clock.now - start)
        found.append(
            [(now[s] + (running if mask >> s & 1 else 0) - then[s]) & _U32 for s in range(states)]
        )
    return found


def _arrays(
    guest: LinuxGuest, places: list[int], member: str, states: int
) -> list[tuple[int, ...]]:
    offset = guest.types.offsetof("psi_group_cpu", member)
    data = guest.kernel.gather([place + offset for place in places], 4 * states, [])
    return list(struct.iter_unpack(f"<{states}I", data))


def _averages(group: _Group, totals: list[int], clock: _Clock) -> list[tuple[int, ...]]:
    """The averages, moved on where it is time to: update_averages()."""
    late = clock.sched_clock - group.next_update
    if late < 0:
        return group.averages
    missed = late // clock.period
    period = clock.sched_clock - (group.last_update + missed * clock.period)
    if period <= 0:
        return group.averages  # read in the middle of an update
    moved = []
    for total, averaged, averages in zip(totals, group.averaged, group.averages, strict=True):
        sample = min((total - averaged) & _U32, period)
        active = sample * 100 // period * _FIXED_1
        moved.append(
            tuple(
                _decay(_decay(value, _power(exp, missed), 0) if missed else value, exp, active)
                for value, exp in zip(averages, _EXP, strict=True)
            )
        )
    return moved


def _decay(value: int, exp: int, active: int) -> int:
    """calc_load(): one step of an exponential average, in fixed point."""
    moved = value * exp + active * (_FIXED_1 - exp)
    if active >= value:
        moved += _FIXED_1 - 1
    return moved // _FIXED_1


def _power(base: int, exponent: int) -> int:
    """fixed_power_int(): ``base ** exponent`` in fixed point, rounded as the kernel rounds."""
    result, half = _FIXED_1, _FIXED_1 >> 1
    while exponent:
        if exponent & 1:
            result = (result * base + half) >> FIXED_SHIFT
        base = (base * base + half) >> FIXED_SHIFT
        exponent >>= 1
    return result
