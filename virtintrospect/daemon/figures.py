"""Figures of ready guests, sampled from time to time and kept on disk."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from virtintrospect.daemon.config import History
from virtintrospect.domain import Domain
from virtintrospect.driver import Target
from virtintrospect.guests.base import Guest
from virtintrospect.insight.figures import Sample
from virtintrospect.insight.sampling import Sampling

_log = logging.getLogger(__name__)


class Sampler:
    """Takes samples of ready guests, keeps the latest, and a history on disk.

    :param folder: one file a domain, ``UUID.jsonl``, and ``UUID.1.jsonl`` with its older half.
    """

    def __init__(self, folder: Path, config: History) -> None:
        self.folder = folder
        self.config = config
        self.latest: dict[str, Sample] = {}
        self._due: dict[str, float] = {}
        self._sampling: dict[str, Sampling] = {}
        self._lock = Lock()

    def look(self, domain: Domain, guest: Guest, target: Target | None = None) -> None:
        """Take a sample, where one is due."""
        now = time.monotonic()
        if now < self._due.get(domain.uuid, 0.0):
            return
        self._due[domain.uuid] = now + self.config.interval_seconds
        taken = self._sampling.setdefault(domain.uuid, Sampling()).take(guest, target)
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
        self._sampling.pop(domain.uuid, None)

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
