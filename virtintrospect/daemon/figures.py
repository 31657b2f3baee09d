"""Figures of a guest: what hints are made of, sampled from time to time."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import Any

from virtintrospect.daemon.config import History
from virtintrospect.domain import Domain
from virtintrospect.errors import TargetGoneError, VirtIntrospectError
from virtintrospect.guests.base import Guest

_log = logging.getLogger(__name__)

#: Members of ``memory`` that are kept; all are bytes.
MEMORY = (
    "memory_total", "memory_free", "memory_available", "buffers", "cached", "s_reclaimable",
    "swap_total", "swap_free", "active", "inactive", "dirty", "anon_pages", "committed_as",
)  # fmt: skip
#: Members of ``cpu``, summed over all CPUs; milliseconds.
CPU = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
LOAD = ("load1", "load5", "load15", "running", "blocked", "total")

Sample = dict[str, Any]


def sample(guest: Guest) -> Sample:
    """One sample. What this kernel does not measure, or does not show now, is left out."""
    taken: Sample = {"time": round(time.time(), 3)}
    parts: dict[str, Callable[[Guest], Sample]] = {
        "memory": _memory,
        "cpu": _cpu,
        "load": _load,
        "pressure": _pressure,
    }
    for name, part in parts.items():
        try:
            if figures := part(guest):
                taken[name] = figures
        except TargetGoneError:
            raise
        except VirtIntrospectError as error:
            _log.debug("no figures of %s: %s", name, error)
    return taken


def _memory(guest: Guest) -> Sample:
    info = guest.meminfo()
    values = {name: getattr(info, name) for name in MEMORY}
    return {name: value for name, value in values.items() if value is not None}


def _cpu(guest: Guest) -> Sample:
    times = guest.cpu()
    return {name: sum(getattr(cpu, name) for cpu in times) for name in CPU} | {"cpus": len(times)}


def _load(guest: Guest) -> Sample:
    load = guest.load()
    return {name: getattr(load, name) for name in LOAD}


def _pressure(guest: Guest) -> Sample:
    return {
        f"{row.resource}_{row.kind}": {"avg10": row.avg10, "avg60": row.avg60, "total": row.total}
        for row in guest.pressure()
    }


class Sampler:
    """Takes samples of ready guests, keeps the latest, and a history on disk.

    :param folder: one file a domain, ``UUID.jsonl``, and ``UUID.1.jsonl`` with its older half.
    """

    def __init__(self, folder: Path, config: History) -> None:
        self.folder = folder
        self.config = config
        self.latest: dict[str, Sample] = {}
        self._due: dict[str, float] = {}
        self._lock = Lock()

    def look(self, domain: Domain, guest: Guest) -> None:
        """Take a sample, where one is due."""
        now = time.monotonic()
        if now < self._due.get(domain.uuid, 0.0):
            return
        self._due[domain.uuid] = now + self.config.interval_seconds
        taken = sample(guest)
        self.latest[domain.uuid] = taken
        if self.config.enabled:
            try:
                self._append(domain, taken)
            except OSError as error:
                _log.warning("history of %s: %s", domain.name, error)

    def left(self, domain: Domain) -> None:
        """The figures are of a kernel that is no more."""
        self.latest.pop(domain.uuid, None)
        self._due.pop(domain.uuid, None)

    def _append(self, domain: Domain, taken: Sample) -> None:
        line = json.dumps(taken, separators=(",", ":")).encode() + b"\n"
        path = self.folder / f"{domain.uuid}.jsonl"
        with self._lock:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            if _size(path) + len(line) > self.config.domain_kib * 1024 // 2:
                path.replace(self.folder / f"{domain.uuid}.1.jsonl")
                self._make_room()
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)

    def _make_room(self) -> None:
        """Keep all histories within bounds: the longest silent go first."""
        files = [(path.stat(), path) for path in self.folder.glob("*.jsonl")]
        left = (self.config.total_mib << 20) - self.config.domain_kib * 1024 // 2  # to be written
        for status, path in sorted(files, key=lambda item: -item[0].st_mtime):
            left -= status.st_size
            if left < 0:
                path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def keep_newest(paths: Iterable[Path], count: int) -> None:
    """Remove all but the newest files."""
    for path in sorted(paths, key=lambda path: path.name, reverse=True)[count:]:
        path.unlink(missing_ok=True)
