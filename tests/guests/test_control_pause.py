"""A guest stands still as long as it is to, and goes on whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from virtintrospect.driver import Access
from virtintrospect.errors import (
    NoSuchTargetError,
)
from virtintrospect.session import open_session

from .lab.guest import Guest
from .small import small_guest
from .ways import (
    DIES,
    chardevs,
    is_tainted,
    opened,
    state,
    wait_running,
)


def test_the_guest_stands_still(one_guest: Guest) -> None:
    """Its clock does, as it says itself, and so do its jiffies."""
    with opened(one_guest, Access()) as session:
        jiffies = session.symbols.address("jiffies_64")
        started = time.monotonic()
        uptime = float(one_guest.run("cat /proc/uptime").split()[0])
        with session.paused() as pause:
            assert state(one_guest) == "paused"
            first = session.kernel.read_u64(jiffies)
            with session.paused():
                time.sleep(1.5)
            assert session.kernel.read_u64(jiffies) == first
        assert state(one_guest) == "running"
        assert pause.seconds >= 1.5
        passed = float(one_guest.run("cat /proc/uptime").split()[0]) - uptime
        assert passed < time.monotonic() - started - 1.4
        assert session.kernel.read_u64(jiffies) > first
        with pytest.raises(ZeroDivisionError), session.paused():
            _ = 1 / 0
        assert state(one_guest) == "running"
    assert not is_tainted(one_guest)


def test_a_guest_that_was_paused_before_stays_so(one_guest: Guest) -> None:
    one_guest.domain.suspend()
    try:
        with opened(one_guest, Access()) as session:
            with session.paused():
                pass
            assert state(one_guest) == "paused"
        assert state(one_guest) == "paused"
    finally:
        one_guest.domain.resume()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("transport", ["", "gdbstub"])
def test_the_guest_goes_on_when_we_die(ours: Guest, transport: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, ours.name, transport],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"paused\n"
        assert state(ours) == "paused"
        process.send_signal(number)
        process.wait(60)
        wait_running(ours)
        assert ours.run("echo alive") == b"alive\n"
        if transport:
            assert "virtintrospect-gdb" not in chardevs(ours)
    finally:
        process.kill()
        process.communicate()


def test_a_guest_that_ends_while_it_is_paused() -> None:
    with small_guest(boot=False) as guest:
        with open_session(guest.name) as session, session.paused():
            guest.handle.destroy()
        with pytest.raises(NoSuchTargetError):
            open_session(guest.name)
