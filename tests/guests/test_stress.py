"""Tables of a guest that changes as fast as it can: nothing may be shown that never was.

guest/stress.c forks, execs, maps, opens and closes, and writes down every pid, path and port
that it ever uses. What has a process's number in its name must be shown of that process.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from virtintrospect.errors import NoSuchTargetError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Process

from .lab.guest import Guest
from .lab.truth import Snapshot

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

#: How long the tables are read, and what one of them may take on a busy machine.
SECONDS = float(os.environ.get("STRESS_SECONDS", "6"))
PATIENCE = 30.0
#: As many rows of ps are read in any case.
_ROWS = 300
_KERNELS = os.environ.get("STRESS_KERNELS", "5.10 6.12").split()
_START = """
rm -rf /tmp/stress /tmp/stress.out; echo 3000 > /proc/sys/kernel/pid_max
ifconfig lo up
/tmp/stress-program </dev/null >/tmp/stress.out 2>&1 &
until [ -s /tmp/stress.out ]; do usleep 50000; done
"""
_STOP = """
rm -f /tmp/stress/run
for i in $(seq 1000); do pidof stress-program >/dev/null || break; usleep 50000; done
"""
_PROGRAMS = 32
#: Processes of the workload that live as long as it does.
_WORKERS = {b"stress", b"forker", b"filer", b"mapper", b"socketer", b"stress-program"}
_STATIC = {b"/tmp/stress-program", b"/tmp/stress.out", b"/dev/null"}
_SPECIAL = re.compile(rb"\[(heap|stack|vdso|vvar|vvar_vclock|vsyscall)\]")


@dataclass
class Seen:
    """What the tables showed, each thing once, with a row in which it was."""

    pids: dict[int, Any] = field(default_factory=dict)
    paths: dict[bytes, Any] = field(default_factory=dict)
    ports: dict[int, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    #: Processes that every ps had.
    always: set[int] | None = None


@contextmanager
def stressed(guest: Guest) -> Iterator[None]:
    guest.install("stress", "/tmp/stress-program")
    guest.run(_START, 120)
    try:
        yield
    finally:
        guest.run(_STOP, 120)


def test_nothing_is_invented(linux: LinuxGuest, guest: Guest) -> None:
    if guest.config.kernel not in _KERNELS:
        pytest.skip(f"only on {' and '.join(_KERNELS)}")
    before = guest.snapshot()
    static = {file.path for file in linux.files() if file.path} | _STATIC
    sockets = linux.sockets()  # of other tests
    static |= {socket.path for socket in sockets if socket.path}
    old = {port for s in sockets for port in (s.local_port, s.remote_port) if port}
    with stressed(guest):
        seen = _look(linux)
    after = guest.snapshot()
    log = guest.get("/tmp/stress/log").splitlines()
    words: dict[bytes, set[bytes]] = {b"pid": set(), b"path": set(), b"port": set()}
    for line in log:
        kind, _, value = line.partition(b" ")
        words[kind].add(value)
    assert len(words[b"pid"]) > 20  # it has the lowest priority
    pids = set(map(int, words[b"pid"])) | before.processes.keys() | after.processes.keys()
    ports = set(map(int, words[b"port"])) | old
    paths = words[b"path"] | static | _paths(before) | _paths(after)
    paths = {path.removesuffix(b" (deleted)") for path in paths}

    found = [f"pid {pid}: {row}" for pid, row in seen.pids.items() if pid not in pids]
    found += [f"port {port}: {row}" for port, row in seen.ports.items() if port not in ports]
    for path, row in seen.paths.items():
        if path.removesuffix(b" (deleted)") not in paths and not _SPECIAL.fullmatch(path):
            found.append(f"path {path!r}: {row}")
    stable = {
        pid
        for pid, process in before.processes.items()
        if pid in after.processes
        and process.stat.fields[21] == after.processes[pid].stat.fields[21]
    }
    found += [f"pid {pid} was missing once" for pid in stable - (seen.always or set())]
    print(seen.rows, {name: round(took, 2) for name, took in seen.slowest.items()})
    print(Counter(re.sub(r"\d+", "N", problem.what) for problem in linux.take_problems()))
    assert "\n".join(found + seen.wrong) == ""
    assert max(seen.slowest.values()) < PATIENCE


def _paths(word: Snapshot) -> set[bytes]:
    links = [(p.exe, p.cwd, p.root) for p in word.processes.values()]
    return {path for three in links for path in three if path}


def _look(linux: LinuxGuest) -> Seen:
    seen = Seen()
    chance = random.Random(7)
    mine: list[int] = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or seen.rows["ps"] <= _ROWS:
        rows = _timed(seen, "ps", linux.processes)
        mine = [row.pid for row in rows if row.name in _WORKERS or row.name.startswith(b"s")]
        there = {row.pid for row in rows}
        seen.always = there if seen.always is None else seen.always & there
        for row in rows:
            _process(seen, row)
        for row in _timed(seen, "threads", lambda: linux.processes(threads=True, details=True)):
            _process(seen, row)
        for file in _timed(seen, "files", linux.files):
            seen.pids[file.pid] = file
            _path(seen, file.path, file.pid, file)
        for socket in _timed(seen, "sockets", linux.sockets):
            for port in (socket.local_port, socket.remote_port):
                if port and socket.family in ("inet", "inet6"):
                    seen.ports[port] = socket
            if socket.pid is not None:
                seen.pids[socket.pid] = socket
            _path(seen, socket.path, socket.pid, socket)
        for pid in chance.sample(mine, min(3, len(mine))):
            try:
                areas = _timed(seen, "maps", lambda pid=pid: linux.maps(pid))  # type: ignore[misc]
            except NoSuchTargetError:
                continue
            for area in areas:
                _path(seen, area.path, pid, area)
    return seen


def _timed(seen: Seen, name: str, read: Callable[[], list[Any]]) -> list[Any]:
    start = time.monotonic()
    try:
        rows = read()
    finally:
        took = time.monotonic() - start
        seen.slowest[name] = max(took, seen.slowest.get(name, 0.0))
    seen.rows[name] += len(rows)
    return rows


def _path(seen: Seen, path: bytes | None, pid: int | None, row: object) -> None:
    if path is None:
        return
    seen.paths[path] = row
    owner = re.match(rb"/tmp/stress/w(\d+)-", path)
    if owner and pid is not None and int(owner[1]) != pid:
        seen.wrong.append(f"of another process: {row}")


def _process(seen: Seen, row: Process) -> None:
    seen.pids[row.pid] = row
    for path in (row.path, row.cwd, row.root):
        _path(seen, path, None, row)
    program_ = b"x%d" % (row.pid % _PROGRAMS)
    argument = b"%s arg-%d" % (program_, row.pid)
    if row.cmdline and b"arg-" in row.cmdline and row.cmdline != argument:
        seen.wrong.append(f"another's command line: {row}")
    if (
        row.path
        and row.path.startswith(b"/tmp/stress/x")
        and row.path != b"/tmp/stress/" + program_
    ):
        seen.wrong.append(f"another's program: {row}")
    folder = b"/tmp/stress/d%d" % (row.pid % _PROGRAMS)
    if row.cwd and row.cwd.startswith(b"/tmp/stress/d") and row.cwd != folder:
        seen.wrong.append(f"another's directory: {row}")
    if re.fullmatch(rb"[sx]\d+", row.name) and row.name not in (b"s%d" % row.pid, program_):
        seen.wrong.append(f"another's name: {row}")
