"""guestinfo and dommemstat against virsh's own, on a Debian with agent and balloon driver.

Same keys in the same order, same values; but for the load, which libvirt tells since 11.2 only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtintrospect.session import Session, open_session

from .lab import libvirtd
from .lab.debian import BOOT_PATIENCE, LOGINS, DebianGuest

#: Booting systemd takes a minute where it is emulated, and much longer on a busy machine.
pytestmark = pytest.mark.timeout(BOOT_PATIENCE * 2)

#: A log that is written meanwhile takes some blocks; in bytes.
_USED_SLACK = 1 << 20
#: Between two looks memory comes and goes; in KiB. The driver reports once a second.
_MEMORY_SLACK = 16 << 10
_OPTIONS = ("user", "os", "timezone", "hostname", "filesystem", "disk", "interface")


@pytest.fixture(scope="module")
def debian() -> Iterator[DebianGuest]:
    if os.geteuid() != 0:
        pytest.skip("real guests need root: libvirt's system connection, QEMU's memory")
    with DebianGuest() as guest:
        # libvirt gives up an agent after five seconds, else.
        guest.virsh("guest-agent-timeout", "--timeout", "60")
        yield guest


@pytest.fixture(scope="module")
def opened(debian: DebianGuest) -> Iterator[Session]:
    with open_session(debian.name, libvirtd.URI) as session:
        yield session


def ours(command: str, guest: DebianGuest, *options: str) -> str:
    program = str(Path(sys.executable).with_name("virt-introspect"))
    line = [program, "-c", libvirtd.URI, command, guest.name, *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    assert not done.stderr
    return done.stdout


def pairs(text: str) -> list[tuple[str, str]]:
    """Lines of `virsh guestinfo`, which pads keys to twenty characters."""
    lines = [line for line in text.splitlines() if line]
    return [(line[: line.index(":")], line[line.index(":") :]) for line in lines]


def compare(mine: list[tuple[str, str]], theirs: list[tuple[str, str]]) -> None:
    mine = [pair for pair in mine if not pair[0].startswith("load.")]
    assert [key for key, _ in mine] == [key for key, _ in theirs]
    for (key, value), (_, expected) in zip(mine, theirs, strict=True):
        if key.strip().endswith(("used-bytes", "total-bytes")):
            assert abs(int(value[2:]) - int(expected[2:])) <= _USED_SLACK, key
        else:
            assert value == expected, key


def test_guestinfo_is_that_of_virsh(debian: DebianGuest) -> None:
    theirs = pairs(debian.virsh("guestinfo"))
    compare(pairs(ours("guestinfo", debian)), theirs)
    keys = {key.strip() for key, _ in theirs}
    assert {"user.1.login-time", "os.pretty-name", "timezone.offset", "fs.1.disk.0.alias",
            "disk.1.dependency.0.name", "if.0.addr.1.prefix"} <= keys  # fmt: skip


@pytest.mark.parametrize("option", _OPTIONS)
def test_each_option(debian: DebianGuest, option: str) -> None:
    flag = f"--{option}"
    compare(pairs(ours("guestinfo", debian, flag)), pairs(debian.virsh("guestinfo", flag)))


def test_guestinfo_for_programs(debian: DebianGuest) -> None:
    values = json.loads(ours("guestinfo", debian, "-o", "json"))
    assert values["hostname"] == "lab-debian"
    assert values["fs.count"] == 2
    assert values["disk.1.partition"] is True
    assert isinstance(values["load.1m"], float)


def test_logins_have_sessions(debian: DebianGuest, opened: Session) -> None:
    logins = opened.guest.logins()
    assert {(login.tty, login.user) for login in logins} == {
        (tty.encode(), user.encode()) for tty, user in LOGINS.items()
    }
    assert all(login.source == "utmp" and login.type == "user" for login in logins)
    assert {login.uid for login in logins} == {0, 1000}
    sessions = [login.session for login in logins]
    assert None not in sessions
    assert len(set(sessions)) == len(LOGINS)
    names = {user.uid: user.name for user in opened.guest.users()}
    assert (names[0], names[1000]) == (b"root", b"alice")
    assert debian.virsh("domstate").strip() == "running"


def memory(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in text.splitlines() if line)}


def reported(guest: DebianGuest, since: int) -> dict[str, int]:
    """What the driver reported after a second: an emulated guest may be late."""
    deadline = time.monotonic() + 120
    while (found := memory(guest.virsh("dommemstat")))["last_update"] <= since:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_dommemstat_is_that_of_virsh(debian: DebianGuest) -> None:
    before = reported(debian, 0)
    mine = memory(ours("dommemstat", debian))
    after = reported(debian, mine["last_update"])
    assert list(mine) == list(before)
    for key in ("actual", "available", "hugetlb_pgalloc", "hugetlb_pgfail"):
        assert mine[key] == before[key], key
    for key in ("swap_in", "swap_out", "major_fault", "minor_fault", "last_update"):
        # What the driver reported last may be older than what we read.
        assert before[key] <= mine[key], key
        assert mine[key] <= after[key] + 1000, key
    for key in ("unused", "usable", "disk_caches"):
        low, high = sorted((before[key], after[key]))
        assert low - _MEMORY_SLACK <= mine[key] <= high + _MEMORY_SLACK, key
    # A page of the guest that is touched for the first time is one more of QEMU's.
    assert before["rss"] - 65536 <= mine["rss"] <= after["rss"] + 65536
