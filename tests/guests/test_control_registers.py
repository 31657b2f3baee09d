"""Registers of vCPUs, by QEMU's monitor and by its stub for debuggers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtintrospect_kvm.control import ControlledTarget, control_of
from virtintrospect_kvm.driver import KvmTarget
from virtintrospect_kvm.gdbstub import GdbStub
from virtintrospect_kvm.gdbtarget import GdbTarget
from virtintrospect_kvm.qmp import SocketMonitor

from virtintrospect.cli.main import run
from virtintrospect.driver import SupportsRegisters, SupportsSetRegisters
from virtintrospect.errors import (
    FaultError,
    MemoryAccessError,
    NoSuchTargetError,
    NotWritableError,
    TargetGoneError,
    UsageError,
)
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session, open_session
from virtintrospect.space import AddressSpace

from .conftest import Lab
from .lab.guest import Guest
from .lab.paths import listens
from .small import small_guest
from .ways import (
    OURS,
    STUB,
    TAINT,
    chardevs,
    is_tainted,
    opened,
    state,
    wait_running,
)


@pytest.fixture(scope="module", autouse=True)
def last(lab: Lab) -> Iterator[None]:
    """No test after these takes ``ours``."""
    yield
    lab.release(OURS)


def agrees_with_the_kernel(session: Session, values: dict[str, int], levels: int) -> None:
    """Registers of a vCPU, and what the kernel has in memory."""
    linux = session.guest
    assert isinstance(linux, LinuxGuest)
    space = AddressSpace(linux.memory, linux.kernel.mode, values["cr3"] & ~0x1FFF)
    banner = linux.symbols.address("linux_banner")
    assert space.translate(banner) == linux.kernel.translate(banner)
    user = values["cs"] & 3 != 0
    # The kernel's own is the other one in user mode, of which the monitor does not tell.
    bases = {values["gs_base"], values.get("kernel_gs_base")}
    assert bases & set(linux.cpu_offsets) or (user and "kernel_gs_base" not in values)
    assert bool(values["cr4"] & 1 << 12) == (levels == 5)
    assert values["cr0"] & 0x8000_0001 == 0x8000_0001
    assert values["efer"] & 0xD00 == 0xD00  # long mode, no-execute
    if not user:
        assert linux.symbols.lookup(values["rip"]) is not None


def test_registers_by_the_monitor(ours: Guest, caplog: pytest.LogCaptureFixture) -> None:
    with opened(ours, TAINT) as session:
        target = session.target
        assert isinstance(target, ControlledTarget)
        with session.paused():
            found = [target.registers(vcpu) for vcpu in range(target.vcpus)]
            assert len(found) == 2
            linux = session.guest
            for values in found:
                agrees_with_the_kernel(session, values, OURS.levels)
                table = linux.kernel.translate(linux.symbols.address("idt_table"))
                assert linux.kernel.translate(values["idt_base"]) == table
                assert values["idt_limit"] == 0xFFF
        for vcpu in (-1, 2, 1 << 40):
            with pytest.raises(NoSuchTargetError):
                target.registers(vcpu)
    assert "tainted" in caplog.text
    assert is_tainted(ours)


def test_registers_need_leave(one_guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--transport", "gdbstub"]):
        assert run(["registers", one_guest.name, *options]) == 2
        assert "--allow-taint" in capsys.readouterr().err
    assert run(["registers", one_guest.name, "--vcpu", "0", "--set", "rax=1"]) == 2
    assert "--transport gdbstub --allow-taint --allow-write" in capsys.readouterr().err
    assert not is_tainted(one_guest)


def test_gdbstub_says_what_the_others_say(ours: Guest) -> None:
    with opened(ours, TAINT) as session, session.paused():
        target = session.target
        assert isinstance(target, SupportsRegisters)
        by_monitor = [target.registers(vcpu) for vcpu in range(2)]
        pids = {p.pid for p in session.processes()}
        with opened(ours, STUB) as stub:
            other = stub.target
            assert isinstance(other, SupportsRegisters)
            assert other.vcpus == 2
            for vcpu, values in enumerate(by_monitor):
                found = other.registers(vcpu)
                agrees_with_the_kernel(stub, found, OURS.levels)
                same = values.keys() & found.keys()
                assert len(same) > 30
                assert {n: found[n] for n in same} == {n: values[n] for n in same}
            assert {p.pid for p in stub.processes()} == pids
            assert stub.guest.info() == session.guest.info()
        assert state(ours) == "paused"  # it was, before the stub was opened
    assert state(ours) == "running"


def test_registers_are_set(ours: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """By one session, seen by another that asks QEMU's monitor; the guest goes on unharmed."""
    with opened(ours, TAINT) as session, session.paused():
        target = session.target
        assert isinstance(target, SupportsRegisters)
        with opened(ours, STUB) as stub:
            other = stub.target
            assert isinstance(other, SupportsSetRegisters)
            before = target.registers(1)
            other.set_registers(1, {"r15": 0x1234})
        assert target.registers(1)["r15"] == 0x1234
        with opened(ours, STUB) as stub:
            other = stub.target
            assert isinstance(other, SupportsSetRegisters)
            other.set_registers(1, {"r15": before["r15"]})
            for values, error in (
                ({"cr4": (1 << 64) - 1}, MemoryAccessError),
                ({"x": 1}, UsageError),
            ):
                with pytest.raises(error):
                    other.set_registers(1, values)
        assert target.registers(1) == before
    common = ["--transport", "gdbstub", "--allow-taint"]
    assert run(["registers", ours.name, "--vcpu", "0", "--set", "r15=1", *common]) == 2
    assert "--allow-write" in capsys.readouterr().err
    assert ours.run("echo alive") == b"alive\n"


def test_gdbstub_leaves_no_trace(ours: Guest) -> None:
    before = {part for part in chardevs(ours).split("'") if "gdb" in part}
    with opened(ours, STUB) as session:
        assert state(ours) == "paused"
        with pytest.raises(MemoryAccessError, match="somebody debugs"):
            opened(ours, STUB)
        assert state(ours) == "paused"
        with session.paused():
            pass
        assert state(ours) == "paused"
    wait_running(ours)
    after = {part for part in chardevs(ours).split("'") if "gdb" in part}
    assert after - before <= {"gdb"}  # QEMU keeps a device of its own once it had a stub
    assert ours.run("echo alive") == b"alive\n"


def test_memory_through_the_stub(ours: Guest) -> None:
    """As it is read for users who may not look into QEMU's process."""
    with opened(ours, TAINT) as session, session.paused():
        assert isinstance(session.target, KvmTarget)
        assert session.domain is not None
        layout = session.target.layout
        stub = GdbTarget(ours.name, control_of(session.domain, STUB), layout, STUB)
        with Session(stub, session.domain) as other:
            assert other.guest.info() == session.guest.info()
            place = session.kernel.translate(session.symbols.address("linux_banner"))
            for start, size in (
                (place & -4096, 4096),
                (place - 100, 300),
                (place & -4096, 70_000),
            ):
                assert other.memory.read(start, size) == session.memory.read(start, size)
            end = layout.pieces[-1].end
            assert other.memory.read(end - 5, 5) == session.memory.read(end - 5, 5)
            for paddr in (end - 4, 0xA0000, 0x9FFFF):
                with pytest.raises(FaultError):
                    other.memory.read(paddr, 8)
            with pytest.raises(NotWritableError, match="ROM"):
                other.memory.write(0xF0000, b"x")
            before = session.kernel.read(session.symbols.address("panic_timeout"), 4)
            other.write("panic_timeout", b"\1\2\3\4")
            assert session.kernel.integer(session.symbols.address("panic_timeout"), 4) == 0x4030201
            other.write("panic_timeout", before)


def test_qemu_gone_behind_an_open_stub() -> None:
    with small_guest(boot=False) as guest, open_session(guest.name, access=STUB) as session:
        os.kill(guest.pid, signal.SIGKILL)
        assert isinstance(session.target, GdbTarget)
        with pytest.raises(TargetGoneError):
            session.target.registers(0)


def test_dump_has_the_registers_of_its_moment(ours: Guest, tmp_path: Path) -> None:
    """With them, stacks of tasks that run are sure, in an image of a guest that goes on."""
    path = tmp_path / "core"
    with opened(ours, TAINT) as session:
        session.dump(path, pause=True, digest=False)
    assert state(ours) == "running"
    with open_session(str(path)) as image:
        assert isinstance(image.target, SupportsRegisters)
        assert image.target.vcpus == 2
        top = image.guest.kernel.root
        roots = [image.target.registers(vcpu)["cr3"] & ~0x1FFF for vcpu in range(2)]
        assert all(image.memory.read_u64(root + 511 * 8) for root in (*roots, top))
        frames = image.cpu_stacks()
        assert {frame.cpu for frame in frames if frame.found_by == "registers"} <= {0, 1}
        assert not any(frame.found_by in ("scan", "searched") for frame in frames)


def test_a_task_on_a_cpu_has_a_stack(ours: Guest) -> None:
    """Registers and memory of one moment: what a running task is at can be told."""
    pid = int(ours.run("sh -c 'while :; do :; done' >&- 2>&- & echo $!"))
    try:
        with opened(ours, STUB) as session:
            found = session.stack(pid)
            assert found
            assert session.guest.take_problems() == []
    finally:
        ours.run(f"kill -9 {pid}")


@pytest.mark.parametrize(
    ("architecture", "machine", "names"),
    [
        (
            "aarch64",
            ["-M", "virt", "-cpu", "max"],
            {"x0", "pc", "pstate", "ttbr0_el1", "ttbr1_el1", "tcr_el1"},
        ),
        ("arm", ["-M", "virt", "-cpu", "cortex-a15"], {"r0", "pc", "ttbr0", "ttbr1"}),
        ("i386", ["-M", "pc"], {"eax", "eip", "cr3"}),
        ("riscv64", ["-M", "virt"], {"a0", "pc", "satp"}),
        ("s390x", [], {"pswa", "r0", "cr1"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_registers_of_every_architecture(
    architecture: str, machine: list[str], names: set[str], tmp_path: Path
) -> None:
    """A QEMU that has not started its guest yet, without libvirt: what its stub describes."""
    program = shutil.which(f"qemu-system-{architecture}")
    if program is None:
        pytest.skip(f"qemu-system-{architecture} is not installed")
    path = tmp_path / "qmp"
    arguments = ["-S", "-m", "256", "-smp", "2", "-nodefaults", "-display", "none"]
    arguments += ["-qmp", f"unix:{path},server=on,wait=off"]
    with subprocess.Popen([program, *machine, *arguments]) as qemu:
        try:
            deadline = time.monotonic() + 120
            while not listens(path) and time.monotonic() < deadline:
                time.sleep(0.02)
            with SocketMonitor(str(path)) as monitor:
                stub = GdbStub(monitor, architecture)
                assert stub.vcpus == 2
                found = stub.registers(1)
                assert names <= found.keys()
                name = next(n for n in ("x1", "r1", "ebx", "a1") if n in found)
                stub.set_registers(1, {name: 0x1234})
                after = stub.registers(1)
                assert after[name] == 0x1234
                assert all(after[other] == found[other] for other in names)
                stub.close()
                labels = {device["label"] for device in monitor.command("query-chardev")}
                assert "virtintrospect-gdb" not in labels
        finally:
            qemu.kill()
