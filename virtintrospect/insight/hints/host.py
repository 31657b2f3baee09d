"""Hints on what this host keeps from a guest: CPU time, and memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from virtintrospect.insight.hints.facts import MIB, Evidence, Facts, size
from virtintrospect.insight.history import Window
from virtintrospect.model import Hint

#: Bits of the preemption count that are those of locks, not of interrupts (PREEMPT_MASK).
_PREEMPT = 0xFF


class Delay(NamedTuple):
    """How long vCPUs ran on this host's CPUs, and waited for one; milliseconds."""

    ran: float
    waited: float

    @property
    def percent(self) -> float:
        """Of the time that they wanted to run they waited."""
        return 100 * self.waited / max(1.0, self.ran + self.waited)


class Cause(NamedTuple):
    """Why vCPUs get less time than they want."""

    what: str
    evidence: Evidence
    refuted_by: str
    virsh: str | None


def delay(facts: Facts) -> Delay | None:
    """By the host's own scheduler, which no guest can lie to.

    ``None`` where it is not known, or the guest wanted too little to tell: one that is idle
    wants little, and waits for it at the end of the line.
    """
    window = facts.window.here
    ran, waited = (
        sum(max(0.0, values[-1] - values[0]) for values in series.values())
        for series in (window.named("vcpus", key=1, value=at) for at in (1, 2))
    )
    if ran + waited <= 0 or 1000 * window.seconds * facts.policy.idle_percent / 100 > ran:
        return None
    return Delay(ran, waited)


def cause(facts: Facts) -> Cause:
    """A quota, or a set of CPUs that is too small, or else what runs there besides."""
    window = facts.window.here
    cpus = window.last("host", "cpus")
    stopped = int(window.growth("vmm", "limits", "throttled_ms") or 0)
    share = stopped / 10 / window.seconds if window.seconds else 0.0
    if share > facts.policy.throttled_percent:
        group, most = window.text("vmm", "limits", "cpu_group"), facts.quota
        return Cause(
            f"the quota of its control group {group}"
            + (f", {most:g} CPUs' worth of time, stopped it" if most else " stopped it"),
            {
                "cpus_max": most,
                "throttled": window.growth("vmm", "limits", "throttled"),
                "throttled_ms": stopped,
                "cpu_group": group,
            },
            "it is not stopped any more (nr_throttled of cpu.stat), and waits all the same",
            facts.virsh("schedinfo"),
        )
    allowed = facts.allowed_cpus
    evidence: Evidence = {
        "host_cpus": cpus,
        "host_cpus_allowed": allowed,
        "host_psi_cpu_some_percent": window.host_stalled("cpu", "some"),
    }
    if allowed and cpus and allowed < cpus:
        return Cause(
            f"its vCPUs are pinned, each to {allowed:.0f} of the host's {cpus:.0f} CPUs",
            evidence,
            "the wait goes on when the vCPUs may run on all CPUs",
            facts.virsh("vcpupin"),
        )
    return Cause(
        f"the host's {cpus:.0f} CPUs have too much to do" if cpus else "too many share those CPUs",
        evidence,
        "it waits, too, while other guests and programs of the host are idle",
        facts.virsh("vcpuinfo"),
    )


def steal_hints(facts: Facts, steal: float, evidence: Evidence) -> Iterator[Hint]:
    """Time that the host took away from the guest, by the guest's word, and by the host's.

    :param steal: share of the time that the guest counts as stolen.
    """
    found, policy = delay(facts), facts.policy
    waits = found if found is not None and found.percent >= policy.delay_percent else None
    if 100 * steal > policy.steal_percent:
        why = cause(facts)
        yield facts.hint(
            "cpu",
            "host",
            f"the host kept {100 * steal:.0f} % of the time from it: {why.what}",
            evidence | why.evidence,
            why.refuted_by,
            virsh=why.virsh,
        )
    if waits is not None:
        why = cause(facts)
        yield facts.hint(
            "cpu",
            "host",
            f"its vCPUs waited {waits.percent:.0f} % of the time that they wanted to run: "
            f"{why.what}",
            evidence | why.evidence | {"vcpu_ran_ms": waits.ran, "vcpu_waited_ms": waits.waited},
            why.refuted_by,
            virsh=why.virsh,
        )
        yield from _lock_hints(facts, waits)


def _lock_hints(facts: Facts, waits: Delay) -> Iterator[Hint]:
    """VCPUs that wait for a lock whose holder the host has stopped.

    Of each sample: whether some CPU stood in the queue of a spinlock; and whether some held one
    (its task could not be preempted) and had not seen a tick for long: it was not running.
    """
    policy, window = facts.policy, facts.window.here
    looked = [rows for taken in window.samples if len(rows := _signs(taken)) > 1]
    if len(looked) < policy.lock_samples:
        return
    spinning = sum(any(row[7] for row in rows) for rows in looked)
    held_up = sum(
        any(_stopped_holder(row, policy.lock_stopped_ms) for row in rows) for rows in looked
    )
    share = (
        100
        * sum(
            any(row[7] or _stopped_holder(row, policy.lock_stopped_ms) for row in rows)
            for rows in looked
        )
        / len(looked)
    )
    if share < policy.lock_percent:
        return
    count, most = len(looked[-1]), int(facts.allowed_cpus or window.last("host", "cpus") or 0)
    fewer = most if 0 < most < count else None
    yield facts.hint(
        "cpu",
        "host",
        f"in {share:.0f} % of the samples a vCPU held a lock and was not running, or waited for "
        f"such a lock: {count} vCPUs that the host does not run at the same time"
        + (f", on {most} CPUs" if fewer else ""),
        {
            "samples_with_a_spinning_cpu": spinning,
            "samples_with_a_stopped_holder": held_up,
            "vcpu_waited_percent": waits.percent,
            "running_at_most": max(facts.window.values("load", "running"), default=None),
        },
        "the guest is no faster with a CPU of the host for each of its vCPUs",
        current=count,
        recommended=fewer,
        virsh=facts.virsh("setvcpus", str(fewer), "--config") if fewer else None,
    )


def _signs(taken: dict[str, object]) -> list[list[object]]:
    """What a sample has of each CPU: :data:`~virtintrospect.insight.figures.SIGNS`."""
    rows = taken.get("signs")
    found = rows if isinstance(rows, list) else []
    return [row for row in found if isinstance(row, list) and len(row) == 8]


def _stopped_holder(row: list[object], longest: float) -> bool:
    """Whether a CPU that works holds a lock, and has noted no time for long."""
    _, _, _, _, busy, age, count, _ = row
    return (
        busy is True
        and isinstance(age, int)
        and isinstance(count, int)
        and age > longest
        and bool(count & _PREEMPT)
    )


def host_memory_hints(facts: Facts) -> Iterator[Hint]:
    """Memory of the guest that this host has swapped out."""
    window: Window = facts.window.here
    swapped = window.last("vmm", "swapped") or 0.0
    if swapped < facts.policy.host_swapped_mib * MIB:
        return
    yield facts.hint(
        "memory",
        "host",
        f"the host has swapped {size(swapped)} of it out: what the guest takes for fast memory is "
        "on a disk",
        {
            "swapped": int(swapped),
            "host_memory_available": window.last("host", "memory_available"),
            "host_psi_memory_some_percent": window.host_stalled("memory", "some"),
            "memory_max": window.last("vmm", "limits", "memory_max"),
            "memory_group": window.text("vmm", "limits", "memory_group") or None,
        },
        "the guest has that memory free, or does not touch it again",
        current=int(swapped),
        recommended=0,
        virsh=facts.virsh("memtune"),
    )
