"""Dumps of a guest whose memory is in use, against ``cat`` of a file with the same bytes.

Both end with their file on the disk (fsync). Wall-clock time, since the hash has a thread of its
own; and CPU time, for machines that others use, too.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import Figure, show
from benchmarks.measure import per_call
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from tests.guests.lab.images import write_kdump
from virtintrospect.acquire import FORMATS, dump, origin_of
from virtintrospect.session import Session, open_session

#: RAM of the guest, and how much of it is filled with noise.
_RAM, _NOISE = 1024, 400
_RUNS = 5
_TABLES = ("ps", "modules", "files", "dmesg", "memory")


def main() -> None:
    """Boot a guest of each backing, fill its memory and print the figures as they come."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        for backing in ("memfd", "anonymous"):
            with Guest(Config("6.12", backing=backing, ram_mib=_RAM)) as guest:
                guest.run(f"dd if=/dev/urandom of=/noise bs=1048576 count={_NOISE}", 300)
                with open_session(guest.name) as session:
                    show(f"dump, {backing}, {_RAM} MiB of RAM", _dumps(session, folder))
        show("tables of an image, in one process", _images(folder))


def _dumps(session: Session, folder: Path) -> Iterator[Figure]:
    origin = origin_of(session.target, session.guest, "benchmark")
    path = folder / "dump"
    done = dump(origin, path, "elf", force=True, digest=False)
    dense = folder / "dense"
    with dense.open("wb") as out:
        for region in session.memory.resident():
            for paddr in range(region.start, region.end, 1 << 20):
                out.write(session.memory.read(paddr, min(1 << 20, region.end - paddr)))
        out.truncate(done.resident)
    mib = done.resident / (1 << 20)
    cases: dict[str, Callable[[], object]] = {
        f"cat of {mib:.0f} MiB": partial(_cat, dense, folder / "copy")
    }
    for what, digest in (("", True), (", no hash", False)):
        for name in FORMATS:
            cases[name + what] = partial(dump, origin, path, name, force=True, digest=digest)
    made = (path, folder / "copy")
    spent = _spent(cases, partial(_clear, dense, made))
    cat = next(iter(spent.values()))
    for what, runs in spent.items():
        wall, best, cpu = runs.wall, runs.best, runs.cpu
        ratio = f"{cat.wall / wall:.0%} of cat; the best of each {cat.best / best:.0%}"
        ratio += f"; by CPU time {cat.cpu / cpu:.0%}"
        yield Figure(what, mib / wall, "MiB/s", "(≥ 70 %)", ratio)
    dump(origin, path, "elf", force=True, digest=False)


def _images(folder: Path) -> Iterator[Figure]:
    """The same memory as raw, ELF and kdump: their tables must cost much the same."""
    with open_session(str(folder / "dump")) as session:
        dump(origin_of(session.target, None, ""), folder / "raw", "raw", digest=False)
        write_kdump(session.memory, folder / "kdump", "zlib")
    times: dict[str, dict[str, float]] = {}
    for name in ("raw", "dump", "kdump"):
        with open_session(str(folder / name)) as session:
            times[name] = {
                table: per_call(partial(session.table, table)) for table in _TABLES
            }  # fmt: skip
    for table in _TABLES:
        for name in ("raw", "kdump"):
            spent, raw = times[name][table], times["raw"][table]
            yield Figure(
                f"{table}, {name}", spent * 1e3, "ms", "(≤ 2 ×)", f"{spent / raw:.2f} × raw"
            )


def _cat(source: Path, target: Path) -> None:
    with target.open("wb") as out:
        subprocess.run(["cat", str(source)], stdout=out, check=True)
        os.fsync(out.fileno())


def _clear(source: Path, made: Sequence[Path]) -> None:
    """What comes before each case: its file is not there, the disk is idle, the source in memory.

    None of that is counted: not what the removal of the file before costs, either.
    """
    for path in made:
        path.unlink(missing_ok=True)
    os.sync()
    with source.open("rb") as file:
        while file.read(1 << 20):
            pass


class _Spent(NamedTuple):
    """Seconds: medians by the clock and of the CPU, and the best by the clock."""

    wall: float
    #: Of this process and of what it ran: what other programs do hardly changes it.
    cpu: float
    best: float


def _spent(cases: dict[str, Callable[[], object]], before: Callable[[], None]) -> dict[str, _Spent]:
    """Several rounds, each of which runs every case, in another order: all see the same others."""
    walls: dict[str, list[float]] = {what: [] for what in cases}
    cpus: dict[str, list[float]] = {what: [] for what in cases}
    for _ in range(_RUNS):
        for what in random.sample(list(cases), len(cases)):
            before()
            start, cpu = time.perf_counter(), _cpu_time()
            cases[what]()
            walls[what].append(time.perf_counter() - start)
            cpus[what].append(_cpu_time() - cpu)
    return {
        what: _Spent(
            statistics.median(walls[what]), statistics.median(cpus[what]), min(walls[what])
        )
        for what in cases
    }


def _cpu_time() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
