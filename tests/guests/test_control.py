"""Changing, stopping and looking into real guests: each change is seen by the guest itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from virtintrospect_kvm.control import ControlledTarget, control_of
from virtintrospect_kvm.driver import KvmTarget
from virtintrospect_kvm.gdbstub import GdbStub
from virtintrospect_kvm.gdbtarget import GdbTarget
from virtintrospect_kvm.qmp import LibvirtMonitor, SocketMonitor

from virtintrospect.cli.main import run
from virtintrospect.connection import DomainLink
from virtintrospect.driver import Access, SupportsRegisters, SupportsSetRegisters
from virtintrospect.errors import (
    FaultError,
    MemoryAccessError,
    NoSuchTargetError,
    NotWritableError,
    TargetGoneError,
    UnsupportedError,
    UsageError,
)
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session, open_session
from virtintrospect.space import AddressSpace

from .conftest import Lab
from .lab.domain import Config
from .lab.guest import Guest
from .small import small_guest

#: The guest of this file: the monitor taints it, so it is nobody else's. Its RAM is QEMU's own;
#: the guest that the tests share (``one_guest``) has RAM that is mapped here.
OURS = Config("6.12", backing="anonymous", pti=False, vcpus=2)

WRITE = Access(write=True)
TAINT = Access(taint=True)
STUB = Access(transport="gdbstub", taint=True, write=True)


@pytest.fixture(scope="module")
def ours(lab: Lab) -> Iterator[Guest]:
    yield lab.guest(OURS)
    lab.release(OURS)


def opened(guest: Guest, access: Access) -> Session:
    return open_session(guest.name, access=access)


def state(guest: Guest) -> str:
    return {1: "running", 3: "paused"}.get(guest.domain.state()[0], "?")


def wait_running(guest: Guest, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while state(guest) != "running":
        assert time.monotonic() < deadline, f"{guest.name} is still {state(guest)}"
        time.sleep(0.05)


def is_tainted(guest: Guest) -> bool:
    return "tainted" in guest.log


def panic_timeout(guest: Guest) -> int:
    return int(guest.run("cat /proc/sys/kernel/panic"))


# -- writes ------------------------------------------------------------------------------------


@pytest.fixture(params=["kvm-mmap", "kvm-process", "anonymous", "gdbstub"])
def changeable(
    request: pytest.FixtureRequest, one_guest: Guest, ours: Guest
) -> tuple[Guest, Access]:
    """A guest for each way of writing."""
    return {
        "kvm-mmap": (one_guest, WRITE),
        "kvm-process": (one_guest, Access(transport="kvm-process", write=True)),
        "anonymous": (ours, WRITE),
        "gdbstub": (ours, STUB),
    }[request.param]


def test_the_guest_sees_what_is_written(changeable: tuple[Guest, Access]) -> None:
    guest, access = changeable
    before = panic_timeout(guest)
    with opened(guest, access) as session:
        session.write("panic_timeout", (4711).to_bytes(4, "little"))
    assert panic_timeout(guest) == 4711
    with opened(guest, access) as session:
        session.kernel.write_integer(
            session.symbols.address("panic_timeout"), before, 4, signed=True
        )
    assert panic_timeout(guest) == before


def test_a_process_sees_what_is_written(changeable: tuple[Guest, Access]) -> None:
    """In its environment, which is in its own stack: across two pages, and only there."""
    guest, access = changeable
    size = 6000
    pid = int(guest.run(f"X=$(head -c {size} /dev/zero | tr '\\0' a) sleep 1000 >&- & echo $!"))
    try:
        stat = f"/proc/{pid}/stat"  # when it is the program
        status = guest.run(f"until grep -q '(sleep) S' {stat}; do usleep 50000; done; cat {stat}")
        place = int(status.split()[49])  # env_start, proc(5)
        environment = guest.get(f"/proc/{pid}/environ")
        at = environment.index(b"X=aaa") + 2
        text = b"written from outside " * 200
        with opened(guest, access) as session:
            session.write(place + at + 1000, text, pid=pid)
            with pytest.raises(NoSuchTargetError):
                session.write(place, b"x", pid=4_000_000)
        expected = bytearray(environment)
        expected[at + 1000 : at + 1000 + len(text)] = text
        assert guest.get(f"/proc/{pid}/environ") == expected
    finally:
        guest.run(f"kill {pid}")


def test_what_must_not_be_written(changeable: tuple[Guest, Access]) -> None:
    guest, access = changeable
    with opened(guest, access) as session:
        memory = session.memory
        with pytest.raises(NotWritableError, match="read-only"):
            session.write("linux_banner", b"X")
        code = session.symbols.address("schedule")
        with pytest.raises(NotWritableError, match="read-only"):
            session.write(code, b"\xcc")
        first = next(p for p in session.processes() if not p.kernel_thread)
        text = next(a for a in session.maps(first.pid) if a.permissions.startswith("r-x"))
        with pytest.raises(NotWritableError, match="others may share it"):
            session.write(text.start, b"\xcc", pid=first.pid)
        for rom in (0xC0000, 0xFFFF0, 0xFFFFF):
            before = memory.read(rom, 1)
            with pytest.raises(NotWritableError, match="ROM"):
                memory.write(rom, b"x")
            assert memory.read(rom, 1) == before
        last = next(region for region in memory.regions if region.end > 1 << 20)
        tail = memory.read(last.end - 8, 8)
        for paddr, size in ((last.end - 4, 8), (0xA0000, 1), (0x9FFFF, 2), (1 << 45, 1)):
            with pytest.raises(FaultError):
                memory.write(paddr, b"x" * size)
        assert memory.read(last.end - 8, 8) == tail


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
def test_absent_pages_are_refused_and_stay_absent(
    one_guest: Guest, ours: Guest, backing: str
) -> None:
    guest = one_guest if backing == "memfd" else ours
    with opened(guest, WRITE) as session:
        memory = session.memory
        runs = list(memory.resident())
        absent = next(a.end for a, b in pairwise(runs) if b.start > a.end > 2**20)
        before = memory.read(absent - 8, 8)
        with pytest.raises(NotWritableError, match="has not got this page") as caught:
            memory.write(absent - 4, b"12345678")
        assert caught.value.address == absent
        assert memory.read(absent - 8, 8) == before
        assert not any(run.start <= absent < run.end for run in memory.resident())


def test_writing_needs_leave(one_guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(one_guest, Access()) as session:
        with pytest.raises(UnsupportedError, match="cannot change memory"):
            session.write("panic_timeout", b"x")
        with pytest.raises(UsageError, match="not opened for writing"):
            session.memory.write(0x1000, b"x")
        with pytest.raises(UsageError):
            session.kernel.write(session.symbols.address("panic_timeout"), b"x")
    assert run(["write", one_guest.name, "panic_timeout", "00"]) == 2
    assert "--allow-write" in capsys.readouterr().err
    assert run(["write", one_guest.name, "0", "00", "--in-place", "--allow-write"]) == 2


def test_command_pauses_and_shows_what_was_there(
    one_guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    before = panic_timeout(one_guest).to_bytes(4, "little", signed=True).hex()
    arguments = ["write", one_guest.name, "panic_timeout", "--allow-write", "--pause"]
    assert run(["-o", "json", *arguments, "--u32", "99"]) == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert (row["before"], row["data"]) == (before, "63000000")
    assert "the guest stood still for" in captured.err
    assert panic_timeout(one_guest) == 99
    assert run([*arguments, row["before"]]) == 0
    assert not is_tainted(one_guest)


# -- pause -------------------------------------------------------------------------------------


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


#: A program that stands in a pause until it is killed; its arguments are TARGET and transport.
DIES = """
import os, sys
from virtintrospect.driver import Access
from virtintrospect.session import open_session
access = Access(transport=sys.argv[2] or None, taint=bool(sys.argv[2]))
with open_session(sys.argv[1], access=access) as session, session.paused():
    print("paused", flush=True)
    sys.stdin.read()
"""


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


# -- registers ---------------------------------------------------------------------------------


def chardevs(guest: Guest) -> str:
    with open_session(guest.name) as session:
        assert session.domain is not None
        with DomainLink(session.domain) as link:
            return str(LibvirtMonitor(link).command("query-chardev"))


def agrees_with_the_kernel(session: Session, values: dict[str, int], levels: int) -> None:
    """Registers of a vCPU, and what the kernel has in memory."""
    linux = session.guest
    assert isinstance(linux, LinuxGuest)
    space = AddressSpace(linux.memory, linux.kernel.mode, values["cr3"] & ~0x1FFF)
    banner = linux.symbols.address("linux_banner")
    assert space.translate(banner) == linux.kernel.translate(banner)
    assert values["gs_base"] in linux.cpu_offsets or values["kernel_gs_base"] in linux.cpu_offsets
    assert bool(values["cr4"] & 1 << 12) == (levels == 5)
    assert values["cr0"] & 0x8000_0001 == 0x8000_0001
    assert values["efer"] & 0xD00 == 0xD00  # long mode, no-execute
    if values["cs"] & 3 == 0:
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
                agrees_with_the_kernel(session, {"kernel_gs_base": 0} | values, OURS.levels)
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
            while not path.is_socket() and time.monotonic() < deadline:
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
