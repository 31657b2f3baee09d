"""Pressure stall information (kernel/sched/psi.c), as /proc/pressure shows it.

Control groups have the same for themselves, in ``memory.pressure`` and its neighbours.

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
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError, NotFoundError
from virtintrospect.guests.linux import percpu, schedclock
from virtintrospect.guests.linux.budget import Budget
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
#: Nanoseconds that our "now" may lie behind a CPU's own at most, by which it counted last.
_BEHIND = 1 << 30


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


def pressure(guest: LinuxGuest, *, cgroups: bool = False) -> list[Pressure]:
    """The rows of ``pressure``: of the whole guest, or with ``cgroups`` of every control group.

    The root group is the whole guest.

    :raises NotFoundError: the kernel has no PSI, or it was not switched on.
    """
    _check(guest)
    budget = Budget()
    states = guest.types.enumerators("psi_states")
    count = states.get("NR_PSI_STATES", 0)
    system_wide = guest.symbols.address("psi_system")
    if not 1 < count <= _MAX_STATES:
        raise CorruptDataError(f"{count} states of pressure", system_wide)
    places: dict[int, bytes | None] = {system_wide: b"/" if cgroups else None}
    if cgroups:
        places |= _of_cgroups(guest, budget)
    clock = _clock(guest)
    groups = _groups(guest, list(places), count - 1)
    recent = _recent(guest, groups, clock, count, budget)
    found: list[Pressure] = []
    for (place, cgroup), group, times in zip(places.items(), groups, recent, strict=True):
        if group is None or not times:
            guest.note("unreadable pressure", place)
            continue
        found += _rows(group, times, clock, states, cgroup, whole=place == system_wide)
    guest.note_all([budget.problem])
    return found


def _rows(
    group: _Group,
    recent: list[list[int]],
    clock: _Clock,
    states: dict[str, int],
    cgroup: bytes | None,
    *,
    whole: bool,
) -> Iterator[Pressure]:
    gathered = _gathered(recent, clock)
    totals = [a + b for a, b in zip(group.totals, gathered, strict=True)]
    averages = _averages(group, totals, clock)
    for (resource, kind), state in _ROWS.items():
        index = states.get(state, len(totals))
        if not 0 <= index < len(totals):
            continue
        if whole and state == _UNDEFINED:
            yield Pressure(cgroup, resource, kind, 0.0, 0.0, 0.0, 0)
            continue
        avg10, avg60, avg300 = map(fixed, averages[index])
        yield Pressure(cgroup, resource, kind, avg10, avg60, avg300, totals[index] // 1000)


def _of_cgroups(guest: LinuxGuest, budget: Budget) -> dict[int, bytes | None]:
    """Address of each control group's ``struct psi_group``: the group's path.

    Groups in which ``cgroup.pressure`` is 0 (6.1) are left out, as the guest has no files there.
    """
    from virtintrospect.guests.linux.cgrouptree import online, trees
    from virtintrospect.guests.linux.paths import PathReader
    from virtintrospect.symbols.types import Kind

    if "psi_cgroups_enabled" in guest.symbols:
        key = guest.read_global("psi_cgroups_enabled", {"enabled": "key.enabled.counter"})
        if not key["enabled"]:
            raise NotFoundError("the guest's kernel does not measure the pressure of cgroups")
    paths = online(guest, trees(guest, budget)[0], PathReader(guest, budget))
    groups = list(paths)
    member = guest.types.resolve("cgroup", "psi")[-1]
    if member.kind is not Kind.POINTER:  # within the cgroup until 6.1
        return {group + member.offset: paths[group] for group in groups}
    layout = guest.layout("cgroup", {"psi": "psi", "enabled": "psi.enabled?"}, text=())
    columns = layout.lists(guest.kernel, groups, [])
    measured = guest.types.has("psi_group", "enabled")
    return {
        psi: paths[group]
        for group, psi, enabled in zip(groups, *columns.values(), strict=True)
        if psi and (enabled or not measured)
    }


def _check(guest: LinuxGuest) -> None:
    if "psi_system" not in guest.symbols:
        raise guest.without("pressure stall information")
    key = guest.read_global("psi_disabled", {"disabled": "key.enabled.counter"})
    if key["disabled"]:
        raise NotFoundError(
            "the guest's kernel does not measure pressure stalls: it was not switched on",
            hint="boot the guest with psi=1 on its kernel command line",
        )


def _groups(guest: LinuxGuest, places: list[int], count: int) -> list[_Group | None]:
    """The groups at some addresses; ``None`` for one that cannot be read."""
    # The arrays have two dimensions that BTF of older kernels shows as one: the first part of
    # ``total`` is that of PSI_AVGS, ``avg`` has three numbers a state.
    faults: list[int] = []
    totals = _arrays(guest, "psi_group", "total", places, f"{count}Q", faults)
    averaged = _arrays(guest, "psi_group", "avg_total", places, f"{count}Q", faults)
    code = "Q" if guest.types.pointer_size == 8 else "I"
    averages = _arrays(guest, "psi_group", "avg", places, f"{3 * count}{code}", faults)
    members = {"last": "avg_last_update", "next": "avg_next_update", "pcpu": "pcpu"}
    columns = guest.layout("psi_group", members, text=()).lists(guest.kernel, places, faults)
    bad = set(faults)
    return [
        None
        if index in bad
        else _Group(
            last,
            following,
            pcpu,
            list(totals[index]),
            list(averaged[index]),
            _triples(averages[index]),
        )
        for index, (last, following, pcpu) in enumerate(zip(*columns.values(), strict=True))
    ]


def _triples(values: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [values[index : index + 3] for index in range(0, len(values), 3)]


def _clock(guest: LinuxGuest) -> _Clock:
    """The clock of the scheduler, and PSI's steps on it."""
    period = number(guest, "psi_period", 8)
    tick = period - 2_000_000_000
    if not 0 < tick <= 100_000_000:
        raise CorruptDataError(f"a PSI period of {period} ns", guest.symbols.address("psi_period"))
    now = schedclock.now(guest)
    offset = (
        number(guest, "__sched_clock_offset", 8, signed=True)
        if "__sched_clock_offset" in guest.symbols
        else 0
    )
    return _Clock(now, now - offset, period, tick)


def _gathered(recent: list[list[int]], clock: _Clock) -> list[int]:
    """What the CPUs have measured since the last aggregation: collect_percpu_times().

    A CPU counts by the time in which it was not idle.
    """
    count = len(recent[0]) - 1
    sums, weights = [0] * count, 0
    for times in recent:
        weight = times[count] // clock.tick  # PSI_NONIDLE is the last state
        weights += weight
        for state in range(count):
            sums[state] += times[state] * weight
    return [total // max(weights, 1) for total in sums]


def _recent(
    guest: LinuxGuest, groups: list[_Group | None], clock: _Clock, states: int, budget: Budget
) -> list[list[list[int]]]:
    """Each group's times of each CPU since its last aggregation, by state: get_recent_times()."""
    layout = guest.layout("psi_group_cpu", {"mask": "state_mask", "start": "state_start"}, text=())
    # Possible CPUs, not those online: what one gathered before it went counts, too.
    offsets = guest.cpu_offsets
    room = budget.follow(len(groups) * len(offsets)) // max(1, len(offsets))
    starts = [group.pcpu if group else 0 for group in groups[:room]]
    places = [place for start in starts for place in percpu.addresses(guest, start, offsets)]
    faults: list[int] = []
    columns = layout.lists(guest.kernel, places, faults)
    times = _arrays(guest, "psi_group_cpu", "times", places, f"{states}I", faults)
    before = _arrays(guest, "psi_group_cpu", "times_prev", places, f"{states}I", faults)
    bad = set(faults)
    found: list[list[list[int]]] = [[] for _ in groups]
    for index, (mask, start, now, then) in enumerate(
        zip(*columns.values(), times, before, strict=True)
    ):
        if index in bad:
            continue
        running = max(0, clock.now - start)
        found[index // len(offsets)].append(
            [_since(now[s] + (running if mask >> s & 1 else 0), then[s]) for s in range(states)]
        )
    return found


def _since(now: int, then: int) -> int:
    """What a counter of 32 bits gained: nothing where it was last counted later than our "now".

    The kernel counts up at least every two seconds while there is anything to count, so that
    more than three seconds are a counter that seems to have run backwards.
    """
    gained = (now - then) & _U32
    return gained if gained <= _U32 - _BEHIND else 0


def _arrays(
    guest: LinuxGuest, name: str, member: str, places: list[int], code: str, faults: list[int]
) -> list[tuple[int, ...]]:
    """The first numbers of an array that each of many structures has."""
    offset = guest.types.offsetof(name, member)
    form = struct.Struct(f"<{code}")
    data = guest.kernel.gather([place + offset for place in places], form.size, faults)
    return list(form.iter_unpack(data))


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
