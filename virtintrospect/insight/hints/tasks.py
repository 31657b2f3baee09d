"""Hints on I/O, and on processes."""

from __future__ import annotations

from collections.abc import Iterator

from virtintrospect.insight.hints.facts import Facts, size
from virtintrospect.model import Hint


def io_hints(facts: Facts) -> Iterator[Hint]:
    """Tasks that wait for I/O, and what has not been written yet."""
    window, policy = facts.window, facts.policy
    stalled = window.stalled("io", "some")
    if stalled is not None and stalled > policy.io_stalled_percent:
        names = sorted({name for taken in window.samples for name in _waiting(taken)})
        who = f": {', '.join(names[:5])}" if names else ""
        yield facts.hint(
            "io",
            "watch",
            f"tasks waited for I/O {stalled:.0f} % of the time{who}",
            {
                "psi_io_some_percent": stalled,
                "psi_io_full_percent": window.stalled("io", "full"),
                "waiting": ",".join(names) or None,
            },
            "the disks of the guest are idle at the same time (virsh domblkstat)",
            virsh=facts.virsh("domblkstat"),
        )
    total = window.last("memory", "memory_total")
    backlog = [
        dirty + writing
        for dirty, writing in zip(
            window.values("memory", "dirty"), window.values("memory", "writeback"), strict=False
        )
    ]
    writing = max(window.values("memory", "writeback"), default=0.0)
    if total and backlog and 100 * min(backlog) / total > policy.dirty_percent:
        yield facts.hint(
            "io",
            "watch",
            f"{size(min(backlog))} wait to be written all the time: "
            + ("its disks do not keep up" if writing else "nothing of it is being written"),
            {
                "dirty_and_writeback_at_least": int(min(backlog)),
                "writeback_at_most": int(writing),
                "memory_total": total,
            },
            "the backlog empties by itself",
            current=int(backlog[-1]),
        )


def _waiting(taken: dict[str, object]) -> list[str]:
    tasks = taken.get("tasks")
    names = tasks.get("waiting") if isinstance(tasks, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def task_hints(facts: Facts) -> Iterator[Hint]:
    """Zombies, threads, and a process that takes a CPU for itself."""
    window, policy = facts.window, facts.policy
    for name, limit, says in (
        ("zombies", policy.zombies, "processes have ended and nobody has waited for them"),
        ("threads", policy.threads, "threads run: some program starts them without end"),
    ):
        count = window.last("tasks", name)
        if count is not None and count > limit:
            yield facts.hint(
                "tasks",
                "watch",
                f"{count:.0f} {says}",
                {name: count, "limit": limit},
                "the number falls by itself",
                current=int(count),
            )
    if window.seconds < policy.runaway_seconds:
        return
    for which, values in window.named("tasks", "busiest", key=2, value=2).items():
        took = (values[-1] - values[0]) / 10 / window.seconds  # milliseconds to percent
        if took > policy.runaway_percent and _steady(facts, values):
            yield facts.hint(
                "tasks",
                "watch",
                f"process {which[1]} (pid {which[0]}) took {took:.0f} % of a CPU all the time",
                {"process": which[1], "pid": which[0], "cpu_percent": round(took, 1)},
                "it is what the guest is there for",
            )


def _steady(facts: Facts, values: list[float]) -> bool:
    """Whether it worked between all samples, not only between some."""
    times = facts.window.times("tasks", "busiest")
    least = facts.policy.runaway_percent / 2
    return all(
        (values[i + 1] - values[i]) / 10 > least * (times[i + 1] - times[i])
        for i in range(len(values) - 1)
    )
