"""Guests that hang for real: tasks that wait for a frozen file system and for each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from virtintrospect.cli.main import run
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Stall
from virtintrospect.session import open_session

from .lab.domain import Config
from .lab.guest import Guest
from .test_counters import paused


@pytest.fixture
def hanging(guest: Guest) -> Iterator[Guest]:
    guest.install("hang", "/tmp/hang")
    guest.run(
        "cd /tmp; mkdir -p frozen; dd if=/dev/zero of=disk bs=1M count=8 2>/dev/null;"
        "losetup /dev/loop1 /tmp/disk && mke2fs /dev/loop1 >/dev/null &&"
        "mount -t ext4 /dev/loop1 frozen",
        60,
    )
    guest.run(
        "cd /tmp/frozen; touch file; ln -s /tmp/go file.go; rm -f /tmp/go;"
        "/tmp/hang write /tmp/frozen/file </dev/null >/dev/null 2>&1 &"
        " until ls -l /proc/$!/fd | grep -q /tmp/frozen/file; do usleep 50000; done;"
        "/tmp/hang freeze /tmp/frozen; touch /tmp/go;"
        "(mkdir /tmp/frozen/made </dev/null >/dev/null 2>&1 &) ;"
        "until [ $(cat /proc/[0-9]*/stat 2>/dev/null | grep -c -E '[(](hang|mkdir)[)] D') = 3 ];"
        "do usleep 100000; done; sleep 2"
    )
    yield guest
    guest.run(
        "/tmp/hang thaw /tmp/frozen; until umount /tmp/frozen 2>/dev/null; do usleep 100000; done;"
        "losetup -d /dev/loop1; rm /tmp/disk"
    )


def tasks(found: list[Stall]) -> list[Stall]:
    return [item for item in found if item.kind == "task" and item.name != b"uninterruptible"]


@pytest.mark.once_a_kernel
def test_tasks_that_wait_for_a_frozen_file_system(
    linux: LinuxGuest, hanging: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    uptime = float(hanging.get("/proc/uptime").split()[0])
    found = linux.hung(1)  # others may be in state D for a moment, too
    later = float(hanging.get("/proc/uptime").split()[0])
    (system,) = (item for item in found if item.kind == "filesystem")
    assert system.name == b"loop1"
    assert system.text is not None
    assert system.text.startswith(b"ext4 is frozen")
    waiting = tasks(found)
    assert {item.name for item in waiting} == {b"hang", b"mkdir"}
    for item in waiting:
        check(hanging, item, uptime, later)
    first, second = sorted(
        (item for item in waiting if item.name == b"hang"), key=lambda item: -(item.seconds or 0)
    )
    assert first.waits_for == "thaw of ext4 on loop1"
    assert second.waits_for == "mutex"
    assert second.lock
    assert (second.owner_pid, second.owner_name) == (first.pid, b"hang")
    (maker,) = (item for item in waiting if item.name == b"mkdir")
    assert maker.waits_for == "thaw of ext4 on loop1"
    assert tasks(linux.hung(1000)) == []
    # The parent of a vfork waits for its child.
    (parent,) = (item for item in found if item.name == b"uninterruptible")
    assert (parent.waits_for, parent.owner_name) == ("vfork", b"vfork-child")
    assert parent.killable
    assert linux.take_problems() == []
    commands(hanging, capsys)


def check(guest: Guest, item: Stall, uptime: float, later: float) -> None:
    """State, wait channel, stack and time as the guest itself has them."""
    status = guest.get(f"/proc/{item.pid}/stat").rpartition(b")")[2].split()
    assert status[0] == b"D" == (item.state or "").encode()
    assert item.killable is False
    assert item.iowait is False
    channel = guest.get(f"/proc/{item.pid}/wchan").decode()
    if channel != "0":  # before 5.16 it follows frame pointers, which are not there
        assert item.wait_channel == channel
    stack = [
        line.split(" ", 1)[1] for line in guest.get(f"/proc/{item.pid}/stack").decode().splitlines()
    ]
    assert item.stack is not None
    # /proc leaves out the scheduler and the locks, wherever they are.
    assert [line for line in item.stack if line in stack] == stack
    sched = guest.get(f"/proc/{item.pid}/sched").decode()
    (slept,) = (
        float(line.split(":")[1]) / 1000
        for line in sched.splitlines()
        if line.startswith("se.exec_start")
    )
    # The scheduler's clock starts a little before or after that of /proc/uptime.
    assert item.seconds is not None
    assert uptime - slept - 8 <= item.seconds <= later - slept + 8


def commands(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-c", "qemu:///system", "hung", guest.name, "--for", "1"]) == 0
    report = capsys.readouterr().out
    assert "  loop1: ext4 is frozen" in report
    assert "waits for: mutex held by " in report
    assert "percpu_rwsem_wait" in report
    assert run(["-c", "qemu:///system", "hung", guest.name, "--for", "1", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in rows} >= {"task", "filesystem"}
    assert all(isinstance(row["stack"], list) for row in rows if row["kind"] == "task")


def test_a_guest_that_is_paused(one_guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    with paused(one_guest):
        assert run(["-c", "qemu:///system", "hung", one_guest.name, "-o", "json"]) == 0
    first, *_ = json.loads(capsys.readouterr().out)
    assert (first["kind"], first["state"]) == ("guest", "paused")


def test_a_task_that_keeps_its_cpu(boot: Callable[[Config], Guest]) -> None:
    """A real-time loop: its guest answers to nobody meanwhile."""
    guest = boot(Config("6.1"))
    guest.install("hang", "/tmp/hang")
    with open_session(guest.name) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        guest.run(
            "echo -1 > /proc/sys/kernel/sched_rt_runtime_us;"
            "(sleep 3; exec /tmp/hang spin 14) </dev/null >/dev/null 2>&1 &"
        )
        found = wait_for_the_loop(linux)
        # It is gone before the guest answers again.
        guest.run("sleep 1", 120)
        assert not any(map(by_a_task, linux.hung(3)))
    assert found.name == b"hang"
    assert found.cpu == 0
    assert found.seconds is not None
    assert found.seconds >= 3


def by_a_task(item: Stall) -> bool:
    """Whether a task is why a CPU stalls, and not a host that gives the guest no time."""
    return item.kind == "cpu" and b"without a switch" in (item.text or b"")


def wait_for_the_loop(linux: LinuxGuest) -> Stall:
    import time

    end = time.monotonic() + 60
    while time.monotonic() < end:
        for item in linux.hung(3):
            if by_a_task(item):
                return item
        time.sleep(0.2)
    pytest.fail("no CPU is said to hang")
