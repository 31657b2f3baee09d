"""The private libvirtd: guests of the lab run under it, and hooks are its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtintrospect.session import open_session

from .lab.domain import Config
from .lab.guest import Guest
from .lab.private import Private, sweep


@pytest.fixture
def private() -> Iterator[Private]:
    if os.geteuid() != 0:
        pytest.skip("a libvirtd of one's own needs root")
    with Private() as daemon:
        yield daemon


def _wait_for(path: Path, text: str, times: int = 1) -> None:
    deadline = time.monotonic() + 60
    while (path.read_text() if path.exists() else "").count(text) < times:
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def test_guest_boots_and_its_hooks_run(private: Private, tmp_path: Path) -> None:
    said = tmp_path / "said"
    hook = private.hooks / "qemu"
    hook.write_text(f'#!/bin/sh\necho "$@" >>{said}\n')
    hook.chmod(0o755)
    daemon_hook = private.hooks / "daemon"
    daemon_hook.write_text(f'#!/bin/sh\necho "daemon $2" >>{said}\n')
    daemon_hook.chmod(0o755)
    private.reload()
    _wait_for(said, "daemon reload")
    with Guest(Config("6.1", cmdline="lab.sleepers=1"), private=private) as guest:
        with open_session(guest.name, private.uri) as session:
            assert session.guest.info().release.decode() == guest.release
        private.restart()
        _wait_for(said, f"{guest.name} reconnect begin -")
        pid = guest.pid
        private.kill()
        private.start()
        _wait_for(said, f"{guest.name} reconnect begin -", 2)
        assert guest.pid == pid
        assert Path(f"/proc/{pid}").exists()
    lines = said.read_text().splitlines()
    assert f"{guest.name} prepare begin -" in lines
    assert f"{guest.name} started begin -" in lines
    private.close()
    assert not private.folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_two_side_by_side_are_strangers(private: Private) -> None:
    with Private() as other:
        here, there = private.connect(), other.connect()
        assert here.getHostname() != there.getHostname()
        assert "<uuid>" in here.getCapabilities()
        assert here.getCapabilities().split("uuid>")[1] != there.getCapabilities().split("uuid>")[1]
        here.close()
        there.close()


def test_what_a_killed_owner_leaves_is_swept_away(private: Private) -> None:
    program = (
        "import os\nfrom tests.guests.lab.private import Private\n"
        "daemon = Private()\nprint(daemon.folder, daemon.pid, flush=True)\nos._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=True, cwd=Path(__file__).parents[2])  # fmt: skip
    folder, pid = done.stdout.split()
    assert "libvirtd" in Path(f"/proc/{pid}/comm").read_text()
    sweep()
    assert not Path(folder).exists()
    assert private.folder.exists()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
