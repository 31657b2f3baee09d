"""`--snapshot` and `dump --pause` on a guest whose processes come and go all the time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtintrospect.consistent import at_one_moment
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import open_session

from .lab.guest import Guest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="libvirt's system mode needs root")
PROGRAM = Path(sys.executable).with_name("virt-introspect")
_BUSY = "(while [ -e /tmp/busy ]; do (true); done) > /dev/null 2>&1 &"


@pytest.fixture
def busy(one_guest: Guest) -> Iterator[Guest]:
    one_guest.run(f"touch /tmp/busy; {_BUSY} {_BUSY}")
    yield one_guest
    one_guest.run("rm /tmp/busy")


def command(*arguments: str | Path) -> tuple[object, str]:
    run = subprocess.run([PROGRAM, "-o", "json", *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run.stderr


@pytest.mark.parametrize("table", ["ps", "modules", "files", "memory", "guestinfo", "info"])
def test_how_long_is_told(busy: Guest, table: str) -> None:
    start = time.monotonic()
    found, said = command(table, busy.name, "--snapshot")
    took = time.monotonic() - start
    assert found
    match = re.match(r"the guest stood still for (\d+\.\d) ms\n", said)
    assert match, said
    assert 0 < float(match[1]) < took * 1000
    assert busy.domain.state()[0] == 1  # it runs again
    assert "tainted" not in busy.log


def test_two_reads_in_one_pause_agree(busy: Guest) -> None:
    """What no two looks at this guest do while it runs."""
    with open_session(busy.name) as session:
        guest = session.guest
        assert isinstance(guest, LinuxGuest)

        def twice(_: object) -> tuple[object, object, object, object]:
            return guest.cpu(), guest.cpu(), guest.processes(), guest.processes()

        first, second, processes, again = at_one_moment(session, twice).found
        assert first == second
        assert processes == again
        deadline = time.monotonic() + 60
        while guest.cpu() == first:
            assert time.monotonic() < deadline


def test_dump_of_one_moment(busy: Guest, tmp_path: Path) -> None:
    start = time.monotonic()
    record, said = command("dump", busy.name, tmp_path / "core", "--pause", "--no-hash")
    took = time.monotonic() - start
    assert not said
    assert isinstance(record, dict)
    # What it takes to close the file is no pause, what it takes to open it is no copy.
    assert 0 < record["pause_ms"] < took * 1000
    assert busy.domain.state()[0] == 1
    with open_session(str(tmp_path / "core")) as session:
        pids = [process.pid for process in session.processes()]
        assert len(pids) == len(set(pids)) > 20
        assert not session.take_problems()
