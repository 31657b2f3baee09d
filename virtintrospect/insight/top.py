"""What ``top`` shows: figures of guests and of processes, from one look to the next."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from virtintrospect.insight.figures import CPU, Sample
from virtintrospect.insight.history import figure
from virtintrospect.insight.sampling import Sampling

if TYPE_CHECKING:
    from virtintrospect.driver import Target
    from virtintrospect.guests.base import Guest
    from virtintrospect.model import Process

#: Of the past that is shown: seconds, and looks at most.
MINUTE, _MOST_LOOKS = 60.0, 240
#: Processes whose past is kept: the busiest.
_MOST_PROCESSES = 500
_IDLE = ("idle", "iowait")
#: Share of a core that one guest's lists may take, beside the cheap figures.
_SHARE = 0.002
_BLOCKS = "▁▂▃▄▅▆▇█"


class Past:
    """A figure over the last minute."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=_MOST_LOOKS)

    def add(self, value: float) -> None:
        """Add what is now, and forget what is older than a minute."""
        now = time.monotonic()
        self._values.append((now, value))
        while self._values[0][0] < now - MINUTE:
            self._values.popleft()

    def spark(self, most: float, width: int) -> str:
        """The last values as blocks, the newest at the right; empty where there are none.

        :param most: what a full block stands for.
        """
        last = len(_BLOCKS) - 1
        values = [value for _, value in self._values][-width:]
        levels = [round(last * min(1.0, max(0.0, value / most))) if most else 0 for value in values]
        return "".join(_BLOCKS[level] for level in levels)


class GuestTop:
    """One guest, look by look."""

    def __init__(self) -> None:
        self.cpu, self.memory = Past(), Past()
        self._sampling = Sampling(_SHARE)
        self._before: Sample | None = None
        self._again: float | None = None

    def look(self, guest: Guest, target: Target | None = None) -> dict[str, Any]:
        """The fields of a row; what is a rate is there from the second look on."""
        taken = self._sampling.take(guest, target)
        before, self._before = self._before, taken
        total = figure(taken, "memory", "memory_total")
        available = figure(taken, "memory", "memory_available")
        used = None if total is None or available is None else total - available
        # Pages are looked at seldom; what they said holds until they are again.
        self._again = _or(figure(taken, "cache", "used_again"), self._again)
        row = {
            "time": int(taken["time"]),
            "cpus": figure(taken, "cpu", "cpus"),
            "running": figure(taken, "load", "running"),
            "blocked": figure(taken, "load", "blocked"),
            "memory_total": total,
            "memory_need": None if used is None else used + (self._again or 0),
            "memory_available": available,
        }
        if before is not None and taken["time"] > before["time"]:
            row |= _rates(before, taken)
        if (busy := row.get("cpu_percent")) is not None:
            self.cpu.add(busy)
        if row["memory_need"] is not None:
            self.memory.add(row["memory_need"])
        return {name: value for name, value in row.items() if value is not None}


def _rates(before: Sample, taken: Sample) -> dict[str, Any]:
    seconds = taken["time"] - before["time"]
    found: dict[str, Any] = {}
    busy = [_grown(before, taken, "cpu", name) for name in CPU if name not in _IDLE]
    known = [value for value in busy if value is not None]
    if known:
        found["cpu_percent"] = round(sum(known) / seconds / 10, 1)
    for resource in ("cpu", "memory", "io"):
        waited = _grown(before, taken, "pressure", f"{resource}_some", "total")
        if waited is not None:
            found[f"pressure_{resource}"] = round(min(100.0, waited / seconds / 10_000), 1)
    refaults = _grown(before, taken, "events", "refault")
    if refaults is not None:
        found["refaults"] = round(refaults / seconds, 1)
    return found


def _grown(before: Sample, taken: Sample, *path: str) -> float | None:
    """How much a counter has grown; unknown where it went back, as it does by a reboot."""
    old, new = figure(before, *path), figure(taken, *path)
    return None if old is None or new is None or new < old else new - old


def _or(value: float | None, other: float | None) -> float | None:
    return other if value is None else value


class ProcessTop:
    """The processes of one guest, look by look."""

    def __init__(self) -> None:
        self._before: dict[tuple[int, int | None], int] = {}
        self._at = 0.0
        self._pasts: dict[int, Past] = {}

    def look(self, processes: list[Process]) -> list[dict[str, Any]]:
        """Their rows, the busiest first; CPU time is in percent of one processor."""
        now = time.monotonic()
        rows, spent = [], {}
        for process in processes:
            key = process.pid, process.start_time  # numbers are used again
            used = (process.user_time or 0) + (process.system_time or 0)
            spent[key] = used
            row: dict[str, Any] = {
                "time": int(time.time()),
                "pid": process.pid,
                "name": process.name,
                "state": process.state,
                "threads": process.threads,
                "resident_size": process.resident_size,
                "cpu_time": used,
                "cmdline": process.cmdline,
            }
            if key in self._before and now > self._at:
                grown = max(0, used - self._before[key])
                row["cpu_percent"] = round(grown / (now - self._at) / 10, 1)
            rows.append({name: value for name, value in row.items() if value is not None})
        self._before, self._at = spent, now
        rows.sort(key=lambda row: (-row.get("cpu_percent", 0.0), -row.get("resident_size", 0)))
        self._keep(rows)
        return rows

    def past(self, pid: int) -> Past | None:
        """What a process took over the last minute, where it is among the busiest."""
        return self._pasts.get(pid)

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        kept: dict[int, Past] = {}
        for row in rows[:_MOST_PROCESSES]:
            if (busy := row.get("cpu_percent")) is not None:
                past = kept[row["pid"]] = self._pasts.get(row["pid"]) or Past()
                past.add(busy)
        self._pasts = kept
