"""Guests that panic for real, looked at live and in a core of libvirt's; the truth is what the
kernel itself printed: its message, and its own call trace.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from virtintrospect.cli.main import run
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Crash
from virtintrospect.session import open_session

from .conftest import Lab
from .lab import apt
from .lab.domain import Config
from .lab.guest import Guest
from .lab.kernels import loose_module

PATIENCE = 120.0


CONFIGS = [Config("5.10"), Config("7.2"), Config("6.1-686-pae", levels=3, arch="i686")]


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.kernel)
def crashed(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Guest]:
    """A guest of two CPUs that has panicked, and that libvirt knows to have crashed."""
    assert lab  # it sweeps up what earlier runs left, and checks for root
    config = replace(request.param, vcpus=2, ram_mib=256, crashes=True, cmdline="lab.sleepers=5")
    try:
        guest = Guest(config)
    except apt.NoSuchPackageError as error:
        pytest.skip(str(error))
    with guest:
        for module in ("pvpanic", "pvpanic-mmio"):
            with contextlib.suppress(FileNotFoundError):  # one module until 5.12
                guest.put(f"/tmp/{module}.ko", loose_module(config.kernel, module))
                guest.run(f"insmod /tmp/{module}.ko")
        guest.run("(sleep 1; echo c > /proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &")
        end = time.monotonic() + PATIENCE
        while guest.domain.state()[0] != libvirt.VIR_DOMAIN_CRASHED:
            assert time.monotonic() < end, guest.domain.state()
            time.sleep(0.2)
        yield guest


@pytest.fixture(scope="module")
def core(crashed: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("core") / "core"
    path.parent.chmod(0o755)
    crashed.domain.coreDumpWithFormat(
        str(path), libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_RAW, libvirt.VIR_DUMP_MEMORY_ONLY
    )
    yield path
    path.unlink()


def trace(record: Crash) -> list[str]:
    """The frames that the kernel printed, from the function that panicked outwards.

    Guesses behind ``?`` left out, and offsets within panic itself: it printed earlier.
    """
    lines = [line.decode("utf-8", "replace").partition("] ")[2] for line in record.log]
    frames = [line.strip() for line in lines if re.fullmatch(r" [\w.]+\+0x\w+/0x\w+.*", line)]
    start = max(n for n, line in enumerate(frames) if re.match(r"v?panic\+", line))
    return frames[start + 1 :]


def outside_of_panic(stack: tuple[str, ...]) -> list[str]:
    start = max(n for n, line in enumerate(stack) if re.match(r"(\? )?v?panic\+", line))
    return [line.removeprefix("? ") for line in stack[start + 1 :]]


def check(record: Crash, guest: Guest) -> None:
    assert record.state == "panicked"
    assert record.message == b"sysrq triggered crash"
    assert record.release.decode() == guest.release
    assert (record.cpus, record.panic_timeout) == (2, 0)
    assert record.name == b"sh"
    assert record.log[-1]
    text = b"\n".join(record.log).decode("utf-8", "replace")
    # A 32-bit kernel holds against the emulated processor that it may be one of two.
    tainted = re.search(r"Tainted: ([A-Z ]+) [0-9]", text)
    assert record.taint_letters == re.sub("[ G]", "", tainted[1] if tainted else "")
    match = re.search(r"CPU: (\d+) (?:UID: \d+ )?PID: (\d+) Comm: sh", text)
    assert match is not None
    assert (record.cpu, record.tid) == (int(match[1]), int(match[2]))
    assert any("uninterruptible" in name for name in record.blocked_tasks)
    assert record.stack is not None
    theirs = trace(record)
    assert len(theirs) > 5
    assert outside_of_panic(record.stack) == theirs


def test_live(crashed: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """Without registers: the stack is searched for, and says so."""
    with open_session(crashed.name) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        record = linux.crash()
        check(record, crashed)
        assert record.stack_found_by == "searched"
        frames = linux.cpu_stacks()
        assert {frame.cpu for frame in frames} == {0, 1}
        assert {frame.found_by for frame in frames} <= {"searched", "user"}
        assert any(frame.function == "sysvec_reboot" for frame in frames)
    assert run(["-c", "qemu:///system", "crash", crashed.name]) == 0
    report = capsys.readouterr().out
    assert report.startswith("The kernel panicked at ")
    assert "The domain is crashed." in report
    assert "sysrq_handle_crash" in report


def test_core(core: Path, crashed: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """With the registers of QEMU's notes: to the very instruction, through IRQ stacks."""
    with open_session(str(core)) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        record = linux.crash()
        check(record, crashed)
        assert record.stack_found_by == "registers"
        frames = linux.cpu_stacks()
        assert linux.take_problems() == []
        tid = record.tid
        assert tid is not None
        assert [f.symbol for f in linux.stack(tid)] == [
            frame.symbol for frame in frames if frame.tid == tid
        ]
    other = [frame for frame in frames if frame.cpu != record.cpu]
    assert "stop_this_cpu" in {frame.function for frame in other}
    assert "sysvec_reboot" in {frame.function for frame in other}
    # It was interrupted, in user mode or not: on from there its own stack is shown.
    assert {frame.found_by for frame in other[1:]} & {"registers", "user"}
    assert all(frame.confidence == 1.0 for frame in frames)
    assert run(["crash", str(core), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["message"] == "sysrq triggered crash"
    assert isinstance(found["stack"], list)
    assert run(["crash", str(core), "--stacks", "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(frames)


def test_a_guest_that_has_not_crashed(one_guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    with open_session(one_guest.name) as session:
        assert isinstance(session.guest, LinuxGuest)
        record = session.guest.crash()
    assert record.state == "running"
    assert (record.message, record.cpu, record.stack) == (None, None, None)
    assert run(["-c", "qemu:///system", "crash", one_guest.name]) == 0
    assert capsys.readouterr().out.startswith("The kernel has not crashed.")


def test_taints(one_guest: Guest) -> None:
    """Bits that a program of the guest may set (``TAINT_USER`` and others)."""
    one_guest.run("echo $((1 << 6 | 1 << 9)) > /proc/sys/kernel/tainted")
    with open_session(one_guest.name) as session:
        assert isinstance(session.guest, LinuxGuest)
        record = session.guest.crash()
    assert set("UW") <= set(record.taint_letters)
    assert "U: a user asked for it" in record.taints
