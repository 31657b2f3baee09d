"""Hints on processors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from virtintrospect.insight.figures import CPU
from virtintrospect.insight.hints.facts import Evidence, Facts
from virtintrospect.insight.hints.host import steal_hints
from virtintrospect.insight.hints.wakes import wake_hints
from virtintrospect.model import Hint

#: What :func:`~virtintrospect.insight.figures.sample` keeps of each CPU begins with its number.
_PLACE = {name: index + 1 for index, name in enumerate(CPU)}
_BUSY = ("user", "nice", "system", "irq", "softirq")


def _steps(facts: Facts) -> list[dict[int, dict[str, float]]]:
    """Between each two samples: of each CPU, the share of time by what it was spent on."""
    found = []
    samples = [rows for taken in facts.window.samples if (rows := _rows(taken.get("each_cpu")))]
    for before, after in pairwise(samples):
        step = {}
        for number, row in after.items():
            past = before.get(number)
            if past is None:
                continue
            spent = {name: max(0, row[at] - past[at]) for name, at in _PLACE.items()}
            total = sum(spent.values())
            if total > 0:
                step[number] = {name: value / total for name, value in spent.items()}
        if step:
            found.append(step)
    return found


def _rows(value: object) -> dict[int, list[int]]:
    """The rows of a sample by CPU; none of those that are not as they should be."""
    return {
        row[0]: row
        for row in (value if isinstance(value, list) else ())
        if isinstance(row, list)
        and len(row) == len(CPU) + 1
        and all(isinstance(item, int) for item in row)
    }


def _busy(shares: dict[str, float]) -> float:
    return sum(shares[name] for name in _BUSY)


def busy_percent(facts: Facts) -> float | None:
    """How busy the guest's CPUs were; ``None`` where that is not known."""
    steps = _steps(facts)
    if not steps:
        return None
    return 100 * sum(sum(map(_busy, step.values())) / len(step) for step in steps) / len(steps)


def cpu_hints(facts: Facts) -> Iterator[Hint]:
    """How many vCPUs, and what keeps them from their work."""
    steps = _steps(facts)
    if not steps:
        return
    count = len(steps[-1])
    demand = sorted(sum(map(_busy, step.values())) for step in steps)
    mean = sum(demand) / len(demand)
    worst = demand[min(len(demand) - 1, math.ceil(0.95 * len(demand)) - 1)]
    steal = sum(sum(c["steal"] for c in step.values()) for step in steps) / len(steps) / count
    evidence: Evidence = {
        "vcpus": count,
        "busy_vcpus_mean": round(mean, 2),
        "busy_vcpus_95th_percentile": round(worst, 2),
        "running_at_most": max(facts.window.values("load", "running"), default=None),
        "psi_cpu_some_percent": facts.window.stalled("cpu", "some"),
        "steal_percent": round(100 * steal, 1),
    }
    yield from _count(facts, count, mean, worst, steal, evidence)
    yield from steal_hints(facts, steal, evidence)
    yield from _one_cpu(facts, steps, evidence)
    woken = list(wake_hints(facts, 100 * mean / count))
    yield from woken
    if 100 * mean / count < facts.policy.idle_percent and not facts.stale and not woken:
        yield facts.hint(
            "cpu",
            "watch",
            f"it is idle: its vCPUs were busy {100 * mean / count:.2f} % of the time",
            evidence,
            "it works at times that this window does not show",
            current=count,
        )


def _count(
    facts: Facts,
    count: int,
    mean: float,
    worst: float,
    steal: float,
    evidence: Evidence,
) -> Iterator[Hint]:
    policy, plugged = facts.policy, facts.vcpus
    stalled = facts.window.stalled("cpu", "some") or 0.0
    if 100 * mean / count > policy.busy_high_percent and stalled > policy.cpu_stalled_percent:
        waiting = max(facts.window.values("load", "running"), default=count + 1)
        wanted = max(count + 1, min(int(waiting), 2 * count))
        if facts.quota is not None and facts.quota <= count:
            yield _capped(facts, count, mean, stalled, evidence)
            return
        beyond = plugged is None or wanted > plugged[1]
        yield facts.hint(
            "cpu",
            "grow",
            f"its {count} vCPUs were busy {100 * mean / count:.0f} % of the time, and tasks waited "
            f"for one {stalled:.0f} %",
            evidence,
            "tasks still wait when it has more: then one thread, or a lock, is what it waits for",
            current=count,
            recommended=wanted,
            virsh=facts.virsh(
                "setvcpus", str(wanted), *(("--maximum", "--config") if beyond else ("--live",))
            ),
        )
        return
    wanted = max(1, math.ceil(worst * 100 / policy.busy_target_percent))
    busy_now = stalled > policy.cpu_stalled_percent or 100 * steal > policy.steal_percent
    if wanted < count and not facts.stale and not busy_now and wanted <= count // 2:
        live = count - wanted <= facts.unpluggable
        yield facts.hint(
            "cpu",
            "shrink",
            f"95 % of the time no more than {worst:.1f} of its {count} vCPUs were busy"
            + ("" if live else "; those it started with take a restart"),
            evidence,
            "tasks wait for a CPU (PSI cpu some) with fewer of them",
            current=count,
            recommended=wanted,
            virsh=facts.virsh("setvcpus", str(wanted), "--live" if live else "--config"),
        )


def _capped(facts: Facts, count: int, mean: float, stalled: float, evidence: Evidence) -> Hint:
    """Tasks wait for a CPU, and more vCPUs would get no more time of the host."""
    quota, group = facts.quota or 0.0, facts.window.here.text("vmm", "limits", "cpu_group")
    return facts.hint(
        "cpu",
        "host",
        f"its {count} vCPUs were busy {100 * mean / count:.0f} % of the time, and tasks waited for "
        f"one {stalled:.0f} %; but its control group {group} gives all of them no more than "
        f"{quota:g} CPUs' worth of time: more vCPUs would not help",
        evidence | {"cpus_max": quota, "cpu_group": group},
        "tasks still wait with a larger quota",
        current=count,
        virsh=facts.virsh("schedinfo"),
    )


def _one_cpu(
    facts: Facts,
    steps: list[dict[int, dict[str, float]]],
    evidence: Evidence,
) -> Iterator[Hint]:
    """One CPU that does the work of all, most of all of interrupts."""
    policy = facts.policy
    numbers = set(steps[0]).intersection(*steps)
    if len(numbers) < 2:
        return
    mean = {n: sum(_busy(step[n]) for step in steps) / len(steps) for n in numbers}
    hottest = max(mean, key=lambda n: mean[n])
    others = [mean[n] for n in numbers if n != hottest]
    cool = 100 * sum(others) / len(others)
    if 100 * mean[hottest] < policy.one_cpu_percent or cool > policy.others_percent:
        return
    serving = sum(s[hottest]["irq"] + s[hottest]["softirq"] for s in steps) / len(steps)
    cause = (
        "interrupts are pinned to it"
        if serving > mean[hottest] / 2
        else "one thread is all that works, or tasks are pinned to it"
    )
    yield facts.hint(
        "cpu",
        "watch",
        f"CPU {hottest} was busy {100 * mean[hottest]:.0f} % of the time, the others "
        f"{cool:.0f} %: {cause}; more vCPUs would not help",
        evidence
        | {
            "cpu": hottest,
            "busy_percent": round(100 * mean[hottest], 1),
            "interrupts_percent": round(100 * serving, 1),
            "others_percent": round(cool, 1),
        },
        "the load moves to another CPU by itself",
    )
