"""A QEMU without libvirt, named by its QMP socket."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from virtintrospect_kvm.qmp import SocketMonitor

from tests.descriptors import descriptors, left_open
from virtintrospect.driver import Access, SupportsRegisters
from virtintrospect.errors import (
    AccessDeniedError,
    FaultError,
    MemoryAccessError,
    NoSuchTargetError,
    TargetGoneError,
    UnsupportedError,
    UsageError,
    VirtIntrospectError,
)
from virtintrospect.session import open_session

from .small import PATTERN
from .standalone import StandaloneQemu, standalone
from .test_transports import command
from .ways import DIES

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="QEMU's memory is root's alone")


@pytest.fixture(scope="module")
def qemu() -> Iterator[StandaloneQemu]:
    with standalone() as running:
        yield running


@pytest.mark.parametrize("transport", [None, "kvm-mmap", "kvm-process", "monitor"])
def test_qmp_target(qemu: StandaloneQemu, transport: str | None) -> None:
    before = descriptors()
    with open_session(qemu.target, access=Access(transport)) as session:
        assert session.target.transport == (transport or "kvm-mmap")
        assert session.domain is None
        assert session.memory.read(qemu.pattern(), len(PATTERN)) == PATTERN
        guest = session.guest
        names = {process.name for process in guest.processes()}
        assert {b"kthreadd", b"sleep"} <= names
        assert guest.take_problems() == []
    assert left_open(before) == set()


def test_qmp_commands(qemu: StandaloneQemu) -> None:
    out, err = command("ps", qemu.target, "-o", "json")
    assert {"kthreadd", "sleep"} <= {row["name"] for row in json.loads(out)}
    assert not err
    out, _ = command("dommemstat", qemu.target, "-o", "json")
    assert json.loads(out)["rss"] > 64 << 10
    _, err = command("ps", qemu.target, "--transport", "peek", code=2)
    assert "goes through libvirt" in err


def test_qmp_whose_monitor_is_taken(qemu: StandaloneQemu) -> None:
    """QEMU serves one client at a time; its memory can be read all the same."""
    with SocketMonitor(qemu.path):
        with open_session(qemu.target) as session:
            assert session.memory.read(qemu.pattern(), 8) == PATTERN[:8]
        with pytest.raises(MemoryAccessError, match="one client at a time"):
            open_session(qemu.target, access=Access("monitor"))


def test_monitor_that_prints(qemu: StandaloneQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where QEMU takes no file, ``xp`` gives the same bytes, at odd addresses too."""
    from virtintrospect_kvm import saved

    def refuse(*_: object, **__: object) -> None:
        raise MemoryAccessError("no descriptors today")

    monkeypatch.setattr(saved.MonitorReader, "_save", refuse)
    at = qemu.pattern()
    reader = saved.MonitorReader(SocketMonitor(qemu.path))
    try:
        assert not reader.saves
        assert reader.read(at, len(PATTERN)) == PATTERN
        assert reader.read(at + 3, 21) == PATTERN[3:24]
        with pytest.raises(FaultError):
            reader.read(0xFE00_0000, 8)
    finally:
        reader.close()


def test_qmp_that_is_none(qemu: StandaloneQemu, tmp_path: Path) -> None:
    for target, error in (
        ("qmp:", UsageError),
        (f"qmp:{tmp_path}/none", NoSuchTargetError),
        (f"qmp:{tmp_path}", MemoryAccessError),
        (f"qmp:{__file__}", MemoryAccessError),
        ("qmp:" + "x" * 300, MemoryAccessError),
        ("qmp:a\0b", VirtIntrospectError),
    ):
        for transport in (None, "monitor"):
            with pytest.raises(error):
                open_session(target, access=Access(transport))
    # Somebody who listens but is no QEMU: this very process.
    with _listener(tmp_path / "socket") as path:
        with pytest.raises(MemoryAccessError, match="behind"):
            open_session(f"qmp:{path}", access=Access("kvm-process"))
        with pytest.raises(MemoryAccessError, match="does not greet"):
            open_session(f"qmp:{path}")
    _, err = command("ps", f"qmp:{tmp_path}/none", code=3)
    assert "there is no QMP socket" in err
    assert qemu.process.poll() is None


@contextlib.contextmanager
def _listener(path: Path) -> Iterator[Path]:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


@pytest.mark.parametrize("transport", ["kvm-process", "monitor"])
def test_qmp_that_ends(transport: str) -> None:
    with standalone(boot=False) as qemu:
        with open_session(qemu.target, access=Access(transport)) as session:
            memory: Any = session.memory
            memory.read(0xFFFF0, 16)
            qemu.process.kill()
            qemu.process.wait()
            memory.expire()
            time.sleep(0.002)
            with pytest.raises(TargetGoneError):
                memory.read(0xFFFF0, 16)
        with pytest.raises(MemoryAccessError):
            open_session(qemu.target)


def runs(qemu: StandaloneQemu) -> bool:
    with SocketMonitor(qemu.path) as monitor:
        return bool(monitor.command("query-status")["running"])


@pytest.mark.parametrize("transport", [None, "monitor", "gdbstub"])
def test_qmp_guest_is_stopped_and_asked(qemu: StandaloneQemu, transport: str | None) -> None:
    """Nothing of it needs leave to taint: there is no libvirt."""
    before = descriptors()
    with open_session(qemu.target, access=Access(transport, write=True)) as session:
        jiffies = session.symbols.address("jiffies_64")
        with session.paused() as pause:
            first = session.kernel.read_u64(jiffies)
            time.sleep(0.3)
            session.memory.expire()
            assert session.kernel.read_u64(jiffies) == first
            target = session.target
            assert isinstance(target, SupportsRegisters)
            assert target.vcpus == 1
            linux = session.guest
            values = target.registers(0)
            assert values["gs_base"] in linux.cpu_offsets or values["cs"] & 3  # type: ignore[attr-defined]
            if transport != "monitor":
                session.write("panic_timeout", (77).to_bytes(4, "little"))
            else:
                with pytest.raises(UnsupportedError, match="monitor cannot change memory"):
                    session.write("panic_timeout", b"x")
        assert pause.seconds >= 0.3
    assert left_open(before) == set()
    assert runs(qemu)
    with open_session(qemu.target) as session:
        written = session.kernel.integer(session.symbols.address("panic_timeout"), 4)
        assert transport == "monitor" or written == 77
        deadline = time.monotonic() + 60
        while session.kernel.read_u64(jiffies) == first:  # an idle guest seldom counts them
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_qmp_stub_for_who_may_not_look_into_the_process(
    qemu: StandaloneQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then QEMU tells where RAM is, and reads it."""

    def refuse(*_: object) -> None:
        raise AccessDeniedError("not today")

    monkeypatch.setattr("virtintrospect_kvm.standalone.QemuProcess", refuse)
    with open_session(qemu.target, access=Access("gdbstub")) as session:
        assert session.memory.read(qemu.pattern(), len(PATTERN)) == PATTERN
        assert b"sleep" in {process.name for process in session.processes()}
    assert runs(qemu)


@pytest.mark.parametrize("transport", ["", "gdbstub"])
def test_qmp_guest_goes_on_when_we_are_killed(qemu: StandaloneQemu, transport: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DIES, qemu.target, transport],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"paused\n"
        process.kill()
    deadline = time.monotonic() + 90
    while True:
        with contextlib.suppress(MemoryAccessError):  # the guardian is talking to it
            if runs(qemu):
                break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with SocketMonitor(qemu.path) as monitor:
        labels = {device["label"] for device in monitor.command("query-chardev")}
        assert "virtintrospect-gdb" not in labels
