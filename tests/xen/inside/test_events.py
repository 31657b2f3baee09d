"""What the vCPUs of a PVH guest do, as Xen's monitor reports it on an emulated SVM.

No breakpoint: QEMU's emulation takes ``int3`` for an interrupt of software, which Xen does not
intercept (raise_interrupt2 in target/i386/tcg/excp_helper.c), so the guest itself gets it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from virtintrospect_xen.driver import XenDriver
from virtintrospect_xen.target import XenTarget

from tests.xen.lab.guest import XenGuest, xl
from virtintrospect.driver import Access, Capability, EventStream
from virtintrospect.errors import (
    MemoryAccessError,
    TargetGoneError,
    UnsupportedError,
    UsageError,
)
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model.event import (
    Event,
    EventKind,
    MemoryAccess,
    RegisterWrite,
    SingleStep,
    Trigger,
)

_PATIENCE = 120.0
#: Processes that come and go, until they are told to rest.
_WORK = (
    "touch /tmp/go; (while [ -e /tmp/go ]; do (true); done) > /dev/null 2>&1 & echo $! > /tmp/shell"
)


@pytest.fixture
def target(guest: XenGuest) -> Iterator[XenTarget]:
    if guest.config.kind == "pv":
        pytest.skip("Xen reports nothing of PV guests")
    with XenDriver().open_url("xen", str(guest.domid), Access(write=True)) as opened:
        yield opened
    assert guest.run("echo alive") == b"alive\n"


def _collect(target: XenTarget, guest: XenGuest, trigger: Trigger, enough: int) -> list[Event]:
    """Events of one kind while the guest works, until there are so many."""
    found: list[Event] = []
    deadline = time.monotonic() + _PATIENCE
    with target.watch(trigger) as stream:
        while len(found) < enough:
            assert time.monotonic() < deadline, found
            found += stream.read(1.0)
    guest.run("rm /tmp/go; sleep 1")
    return found


def test_capability(guest: XenGuest) -> None:
    with XenDriver().open_url("xen", str(guest.domid)) as reading:
        assert Capability.EVENTS not in reading.capabilities()
        with pytest.raises(UsageError, match="may not be disturbed"):
            reading.watch(RegisterWrite())
    with XenDriver().open_url("xen", str(guest.domid), Access(write=True)) as target:
        assert (Capability.EVENTS in target.capabilities()) == (guest.config.kind != "pv")
        if guest.config.kind == "pv":
            with pytest.raises(UnsupportedError, match="cannot report events"):
                target.watch(RegisterWrite())


def test_writes_of_cr3(target: XenTarget, guest: XenGuest, linux: LinuxGuest) -> None:
    """The page tables that the guest changes to are those of its processes."""
    guest.run(_WORK)
    shell = linux.process_space(int(guest.get("/tmp/shell"))).root
    events = _collect(target, guest, RegisterWrite("cr3"), 20)
    assert {event.kind for event in events} == {EventKind.REGISTER}
    assert {(event.register, event.vcpu) for event in events} == {("cr3", 0)}
    text = linux.symbols.address("_text"), linux.symbols.address("_etext")
    assert all(text[0] <= event.rip < text[1] for event in events)
    roots = {(event.value or 0) & ~0xFFF & ((1 << 52) - 1) for event in events}
    assert len(roots) > 1
    assert all(target.memory.read(root, 8) for root in roots)
    assert shell in roots


def test_access_to_a_page(target: XenTarget, linux: LinuxGuest) -> None:
    """Xen can do it on Intel's processors only, and says so; nothing stays behind."""
    page = linux.kernel.translate(linux.symbols.address("jiffies_64"))
    with pytest.raises(UnsupportedError, match="on this processor"):
        target.watch(MemoryAccess(page, "w"))


def test_single_steps(target: XenTarget) -> None:
    """The same; the guest goes on."""
    with pytest.raises(UnsupportedError, match="on this processor"):
        target.watch(SingleStep())
    with pytest.raises(UsageError, match="no vCPU 200"):
        target.watch(SingleStep(200))


def test_who_watches_is_killed(target: XenTarget, guest: XenGuest) -> None:
    """The guest goes on, and can be watched again."""
    program = (
        "import os, signal, time\n"
        "from virtintrospect.driver import Access\n"
        "from virtintrospect.model.event import RegisterWrite\n"
        "from virtintrospect_xen.driver import XenDriver\n"
        f"target = XenDriver().open_url('xen', '{guest.domid}', Access(write=True))\n"
        "stream = target.watch(RegisterWrite())\n"
        "stream.read(20); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as watcher:
        assert watcher.wait(_PATIENCE) == -signal.SIGKILL
    guest.run(_WORK)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with target.watch(RegisterWrite()) as stream:
                assert stream.read(60.0)
            break
        except MemoryAccessError:  # the first one's monitor is being ended
            assert time.monotonic() < deadline
            time.sleep(1)
    guest.run("rm /tmp/go")


def test_a_guest_that_ends(guest: XenGuest) -> None:
    """Who watches hears of it, and nothing is left of the guest."""
    if guest.config.kind == "pv":
        pytest.skip("Xen reports nothing of PV guests")
    with (
        XenGuest(guest.config, wait=False) as other,
        XenDriver().open_url("xen", str(other.domid), Access(write=True)) as target,
        target.watch(RegisterWrite("cr0")) as stream,
    ):
        other.destroy()
        with pytest.raises(TargetGoneError):
            _read_on(stream)
    deadline = time.monotonic() + _PATIENCE
    while str(other.domid) in [line.split()[1] for line in xl("list").splitlines()[1:]]:
        assert time.monotonic() < deadline, xl("list")
        time.sleep(0.2)


def _read_on(stream: EventStream) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        stream.read(1.0)


def test_wrong_triggers(target: XenTarget) -> None:
    for wrong in (RegisterWrite("cr8"), MemoryAccess(0x1000, ""), MemoryAccess(0x1000, "q")):
        with pytest.raises(UsageError):
            target.watch(wrong)
