"""Samples over time, as the daemon keeps them or as they were taken just now."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from virtintrospect.insight.figures import Sample

#: Most bytes of one file of history that are read, from its end.
_LARGEST = 8 << 20
#: A change of MemTotal by more than this part of it is one of the guest's size.
_RESIZED = 0.02


def read_history(folder: Path, uuid: str, since: float = 0.0) -> list[Sample]:
    """What the daemon has kept of a domain (``virtintrospect.daemon.figures``), oldest first.

    :param folder: where its files are, ``UUID.jsonl`` and ``UUID.1.jsonl``.
    :param since: seconds since the epoch; older samples are left out.
    :returns: nothing where there is no history. A line that was cut off is passed over.
    :raises OSError: it may not be read.
    """
    found = []
    for path in (folder / f"{uuid}.1.jsonl", folder / f"{uuid}.jsonl"):
        for line in _lines(path):
            try:
                taken = json.loads(line)
            except ValueError:
                continue
            if isinstance(taken, dict) and _number(taken.get("time")) and taken["time"] >= since:
                found.append(taken)
    return sorted(found, key=lambda taken: float(taken["time"]))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LARGEST))
            yield from file.read(_LARGEST).splitlines()
    except FileNotFoundError:
        return


class Window:
    """Samples of one guest, oldest first, since its last boot.

    Counters begin anew when a guest boots; what was before says nothing of the guest that runs.

    :param samples: in any order; those without a time are left out.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        ordered = sorted((s for s in samples if _number(s.get("time"))), key=lambda s: s["time"])
        first = 0
        for index in range(1, len(ordered)):
            if _rebooted(ordered[index - 1], ordered[index]):
                first = index
        self.samples: Sequence[Sample] = ordered[first:]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def seconds(self) -> float:
        """From the first sample to the last."""
        return float(self.samples[-1]["time"] - self.samples[0]["time"]) if self.samples else 0.0

    @property
    def age(self) -> float:
        """Seconds since the last sample."""
        return time.time() - float(self.samples[-1]["time"]) if self.samples else float("inf")

    @property
    def here(self) -> Window:
        """The part with the VMM that runs now: what the host counts of another is another's.

        After a migration, or a restart from a saved state, the guest's own counters go on, and
        those of the host begin anew.
        """
        known = [(n, name) for n, taken in enumerate(self.samples) if (name := _name(taken))]
        others = [n for n, name in known if name != known[-1][1]]
        return self._part(others[-1] + 1 if others else 0)

    @property
    def sized(self) -> Window:
        """The part since the guest's memory last changed: by a balloon, or plugged in."""
        first, last = 0, None
        for number, taken in enumerate(self.samples):
            total = figure(taken, "memory", "memory_total")
            if total is None:
                continue
            if last is not None and abs(total - last) > _RESIZED * last:
                first = number
            last = total
        return self._part(first)

    def _part(self, first: int) -> Window:
        part = Window(())
        part.samples = self.samples[first:]
        return part

    def rows(self, *path: str) -> list[list[Any]]:
        """A list of rows in the last sample that has it; none of those that are none."""
        value = self._last(*path)
        return [row for row in value if isinstance(row, list)] if isinstance(value, list) else []

    def text(self, *path: str) -> str:
        """A word in the last sample that has it; empty where there is none."""
        value = self._last(*path)
        return value if isinstance(value, str) else ""

    def _last(self, *path: str) -> Any:
        found = (_in(taken, *path) for taken in reversed(self.samples))
        return next((value for value in found if value is not None), None)

    def values(self, part: str, *names: str) -> list[float]:
        """A figure in each sample that has it: ``values("memory", "memory_free")``."""
        found = (figure(taken, part, *names) for taken in self.samples)
        return [value for value in found if value is not None]

    def last(self, part: str, *names: str) -> float | None:
        """A figure in the last sample that has it."""
        values = self.values(part, *names)
        return values[-1] if values else None

    def growth(self, part: str, *names: str) -> float | None:
        """How much a counter has grown from the first sample to the last; never below zero."""
        values = self.values(part, *names)
        return max(0.0, values[-1] - values[0]) if len(values) > 1 else None

    def rate(self, part: str, *names: str) -> float | None:
        """Growth of a counter a second."""
        growth = self.growth(part, *names)
        return growth / self.seconds if growth is not None and self.seconds > 0 else None

    def stalled(self, resource: str, kind: str) -> float | None:
        """Percent of the window for which tasks waited, by PSI's ``total``."""
        return _percent(self.rate("pressure", f"{resource}_{kind}", "total"))

    def host_stalled(self, resource: str, kind: str) -> float | None:
        """As :meth:`stalled`, of this host's own tasks."""
        return _percent(self.rate("host", "pressure", f"{resource}_{kind}", "total"))

    def named(self, *path: str, key: int, value: int) -> dict[tuple[Any, ...], list[float]]:
        """Figures of what is named in each sample: a list of rows, as of the largest processes.

        :param path: to the list: ``named("tasks", "largest", key=2, value=2)``.
        :param key: so many first fields of a row say which one it is.
        :param value: index of the figure in a row.
        :returns: only what all samples name that have such a list; one figure a sample.
        """
        series: dict[tuple[Any, ...], list[float]] = {}
        lists = [rows for taken in self.samples if isinstance(rows := _in(taken, *path), list)]
        for number, rows in enumerate(lists):
            for row in rows:
                if isinstance(row, list) and len(row) > value and _number(row[value]):
                    found = series.setdefault(tuple(map(str, row[:key])), [])
                    if len(found) == number:
                        found.append(row[value])
        return {which: found for which, found in series.items() if len(found) == len(lists)}

    def times(self, *path: str) -> list[float]:
        """When the samples were taken that have a figure or a list; seconds since the epoch."""
        return [float(taken["time"]) for taken in self.samples if _in(taken, *path) is not None]


def _percent(rate: float | None) -> float | None:
    """Microseconds a second; more than a second in a second is a lie."""
    return None if rate is None else min(100.0, rate / 10_000)


def _name(taken: Sample) -> Any:
    """Which VMM a sample was taken of; ``None`` where the host does not tell."""
    vmm = taken.get("vmm")
    return vmm.get("id") if isinstance(vmm, dict) else None


def _rebooted(before: Sample, after: Sample) -> bool:
    """Whether CPU time or a counter of PSI has gone back."""
    for path in (("cpu", "user"), ("cpu", "system"), ("events", "paged_in")):
        old, new = figure(before, *path), figure(after, *path)
        if old is not None and new is not None and new < old:
            return True
    return False


def figure(taken: Sample, *path: str) -> float | None:
    """A number in a sample; ``None`` where it has none there."""
    value = _in(taken, *path)
    return value if _number(value) else None


def _in(taken: Sample, *path: str) -> Any:
    value: Any = taken
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
