"""What the driver itself promises, on a real Xen."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from virtintrospect_xen.calls import Hypervisor
from virtintrospect_xen.driver import XenDriver
from virtintrospect_xen.target import XenTarget

from tests.xen.lab.guest import XenGuest, xl
from virtintrospect.driver import Access, Capability
from virtintrospect.errors import (
    FaultError,
    NoSuchTargetError,
    NotWritableError,
    UsageError,
)
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session

_PAGE = 4096


def _target(session: Session) -> XenTarget:
    assert isinstance(session.target, XenTarget)
    return session.target


def _open(guest: XenGuest, *, write: bool = False) -> XenTarget:
    return XenDriver().open_url("xen", guest.name.removeprefix("xen:"), Access(write=write))


def test_info(linux: LinuxGuest, guest: XenGuest) -> None:
    info = linux.info()
    assert info.release.decode() == guest.release
    assert info.hostname == guest.get("/proc/sys/kernel/hostname").strip()
    assert info.arguments == guest.get("/proc/cmdline").strip()
    assert info.page_mode == "4-level"
    assert info.build_id in guest.get("/sys/kernel/notes")
    assert info.kaslr_slide == info.kernel_base - 0xFFFFFFFF81000000
    if guest.config.kind != "hvm":
        # Xen enters these past what would randomise the kernel's place.
        assert info.kaslr_slide == 0
    assert guest.run("grep -m1 ' _text$' /proc/kallsyms").split()[0] == b"%x" % info.kernel_base


def test_kind_and_transport(session: Session, guest: XenGuest) -> None:
    target = _target(session)
    assert target.info.hvm == (guest.config.kind != "pv")
    assert target.transport == "xen-map"
    reading = {Capability.GATHER, Capability.REGISTERS, Capability.PAUSE}
    assert target.capabilities() == reading
    with _open(guest, write=True) as writing:
        changing = {Capability.WRITE, Capability.SET_REGISTERS}
        if target.info.hvm:
            changing |= {Capability.EVENTS}
        assert writing.capabilities() == reading | changing


def test_whole_memory_is_found(session: Session, guest: XenGuest) -> None:
    """What the guest says is its RAM is there, and nothing else is resident."""
    memory = _target(session).memory
    ram = [
        [int(number, 16) for number in line.split()[0].split(b"-")]
        for line in guest.get("/proc/iomem").splitlines()
        if line.endswith(b": System RAM") and not line.startswith(b" ")
    ]
    resident = list(memory.resident())
    for start, end in ram:
        assert any(r.start <= start and end < r.end for r in resident), (start, end, resident)
    pages = sum(region.size for region in resident) // _PAGE
    given = _target(session).info.pages
    assert given - 512 <= pages <= given


def test_registers(session: Session, linux: LinuxGuest) -> None:
    target = _target(session)
    assert target.vcpus == 1
    text = linux.symbols
    target.pause()  # the process whose page tables they name may end meanwhile
    try:
        found = target.registers(0)
        root = found["cr3"] & ~0xFFF
        if target.memory.frames is not None:
            root = target.memory.frames.physical(root)
        banner = linux.kernel.with_root(root).read(text.address("linux_banner"), 13)
    finally:
        target.resume()
    if found["rip"] >> 63:  # it idles in the kernel
        assert text.address("_text") <= found["rip"]
    assert banner == b"Linux version"
    with pytest.raises(NoSuchTargetError):
        target.registers(1)


def test_machine_and_guest_frames_agree(session: Session) -> None:
    """Both tables of a PV guest, read independently, name the same frames."""
    memory = _target(session).memory
    if memory.frames is None:
        pytest.skip("only PV guests have machine frames")
    frames = range(0, memory.regions[-1].end // _PAGE, 977)
    for frame in frames:
        (machine,) = memory.machine(range(frame, frame + 1))
        if machine >= 0:
            assert memory.frames.physical(machine * _PAGE) == frame * _PAGE
    assert memory.frames.physical(1 << 40) >> 51  # nowhere


def test_write_and_read_back(guest: XenGuest, linux: LinuxGuest) -> None:
    space = linux.kernel
    # A string of our own in the guest, found by its owner's environment.
    where = space.translate(linux.symbols.address("saved_command_line"))
    text = space.translate(space.read_u64(linux.symbols.address("saved_command_line")))
    assert where != text
    with _open(guest, write=True) as target:
        before = target.memory.read(text, 7)
        assert before == b"console"
        target.write(text, b"CONSOLE")
        assert guest.get("/proc/cmdline").startswith(b"CONSOLE=hvc0")
        target.write(text, before)
    assert guest.get("/proc/cmdline").startswith(b"console=hvc0")


def test_write_where_it_cannot_be(guest: XenGuest, linux: LinuxGuest) -> None:
    with _open(guest) as target, pytest.raises(UsageError, match="not opened for writing"):
        target.write(0x1000, b"x")
    with _open(guest, write=True) as target:
        with pytest.raises(FaultError):
            target.write(target.memory.end, b"x")
        if target.memory.frames is not None:  # Xen protects a PV guest's page tables
            with pytest.raises(NotWritableError, match="page table"):
                target.write(linux.kernel.root, bytes(8))


def test_pause_is_counted_and_always_undone(guest: XenGuest) -> None:
    def paused() -> bool:
        with Hypervisor() as hypervisor:
            return hypervisor.info(guest.domid).state == "paused"

    with _open(guest) as target:
        target.pause()
        target.pause()
        assert paused()
        target.resume()
        assert paused()
        target.resume()
        assert not paused()
        target.pause()
        assert paused()
    _until(lambda: not paused())
    # A process that is killed leaves nothing paused either.
    program = (
        "import os, signal; from virtintrospect_xen.driver import XenDriver\n"
        f"target = XenDriver().open_url('xen', '{guest.domid}')\n"
        "target.pause(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False, timeout=240)
    _until(lambda: not paused())
    # A guest that somebody else has paused stays so.
    xl("pause", str(guest.domid))
    with _open(guest) as target:
        target.pause()
        target.resume()
        assert paused()
    xl("unpause", str(guest.domid))
    assert not paused()


def _until(condition: object) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_registers_can_be_set(guest: XenGuest) -> None:
    with _open(guest, write=True) as target:
        target.pause()
        before = target.registers(0)
        target.set_registers(0, {"r15": 0x1122334455667788})
        assert target.registers(0)["r15"] == 0x1122334455667788
        target.set_registers(0, {"r15": before["r15"]})
        assert target.registers(0) == before
        target.resume()
        with pytest.raises(UsageError, match="cr3"):
            target.set_registers(0, {"cr3": 0})
    assert guest.run("echo alive") == b"alive\n"


def test_nothing_is_left_over_many_sessions(guest: XenGuest) -> None:
    """A thousand attachments: Xen's own counters, ours, and the kernel's."""
    rounds = int(os.environ.get("VIRTINTROSPECT_XEN_ROUNDS", "1000"))

    def state() -> tuple[int, ...]:
        """MiB free, mappings, then what must be equal: descriptors, pages of all domains."""
        gc.collect()  # of earlier tests
        maps = Path("/proc/self/maps").read_text().count("\n")
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        with Hypervisor() as hypervisor:
            pages = [hypervisor.info(domid).pages for domid in (0, guest.domid)]
        free = re.search(r"^free_memory *: (\d+)$", xl("info"), re.MULTILINE)
        assert free is not None
        return int(free[1]), maps, descriptors, *pages

    def once() -> None:
        with _open(guest) as target:
            target.memory.read(0x100000, 64 * _PAGE)
            target.registers(0)

    for _ in range(20):
        once()
    before = state()
    memory = _resident()
    for _ in range(rounds):
        once()
    after = state()
    assert after[2:] == before[2:]
    assert after[1] <= before[1] + 4
    # A page that Xen takes for itself may be the one with which a MiB begins.
    assert after[0] >= before[0] - 1
    assert _resident() < memory + (2 << 20)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def test_frames_beyond_the_end(session: Session) -> None:
    memory = _target(session).memory
    for paddr in (memory.end, memory.end + (1 << 40), (1 << 64) - _PAGE):
        with pytest.raises(FaultError):
            memory.read(paddr, 8)
    faults: list[int] = []
    data = memory.gather([0x100000, memory.end + _PAGE, 0x101000], 16, faults)
    assert faults == [1]
    assert data[16:32] == bytes(16)
