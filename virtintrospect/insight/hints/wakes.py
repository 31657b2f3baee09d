"""Hints on guests that have little to do, and wake the host all the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from virtintrospect.insight.hints.facts import Facts
from virtintrospect.model import Hint


class Wakes(NamedTuple):
    """What wakes the vCPUs of a guest, a second."""

    #: Timer interrupts of all CPUs, and ways into idle.
    timers: float
    idle: float
    #: Percent of the ways into idle on which the tick was stopped; ``None`` without any.
    stopped: float | None
    cpus: int


def wakes(facts: Facts) -> Wakes | None:
    """By the guest's own counters; ``None`` where it does not count them, or has begun anew."""
    series = [facts.window.named("signs", key=1, value=at) for at in (1, 2, 3)]
    seconds = facts.window.seconds
    if not series[0] or seconds <= 0:
        return None
    grown = [sum(values[-1] - values[0] for values in one.values()) for one in series]
    if any(values[-1] < values[0] for one in series for values in one.values()):
        return None
    timers, calls, sleeps = grown
    stopped = 100 * sleeps / calls if calls > 0 else None
    return Wakes(timers / seconds, calls / seconds, stopped, len(series[0]))


def too_many(facts: Facts, busy: float) -> Wakes | None:
    """The wakes of a guest that is idle, or nearly; ``None`` where they are few.

    :param busy: percent of the time that its vCPUs were busy.
    """
    policy, found = facts.policy, wakes(facts)
    if found is None or facts.stale or busy > policy.wakes_busy_percent:
        return None
    return found if found.timers / found.cpus > policy.wakes_a_second else None


def wake_hints(facts: Facts, busy: float) -> Iterator[Hint]:
    """Timers that wake the host though the guest does nothing.

    :param busy: percent of the time that its vCPUs were busy.
    """
    found = too_many(facts, busy)
    if found is None:
        return
    # A CPU that stops its tick says so each time that it goes idle.
    ticks = found.idle < found.timers / 10 or (found.stopped is not None and found.stopped < 10)
    if ticks:
        why = "its tick goes on while it is idle (nohz=off, or a kernel without NO_HZ_IDLE)"
    elif facts.timers:
        why = f"timers of {', '.join(facts.timers)}"
    else:
        why = "some program in it wants to be woken all the time"
    yield facts.hint(
        "cpu",
        "watch",
        f"its vCPUs are busy {busy:.1f} % of the time, and yet their timers wake the host "
        f"{found.timers:.0f} times a second: {why}",
        {
            "timer_interrupts_a_second": round(found.timers, 1),
            "ways_into_idle_a_second": round(found.idle, 1),
            "with_the_tick_stopped_percent": found.stopped,
            "vcpus": found.cpus,
            "timers": ",".join(facts.timers) or None,
        },
        "the program needs to be so punctual",
        current=int(found.timers),
    )
