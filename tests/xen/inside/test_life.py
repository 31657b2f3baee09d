"""A guest's memory in its life: it comes late, a balloon moves, it is saved and restored."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from virtintrospect_xen.calls import Hypervisor
from virtintrospect_xen.driver import XenDriver

from tests.guests import compare
from tests.guests.test_counters import SLACK, agree, meminfo, our_meminfo
from tests.xen.lab.guest import XenConfig, XenGuest, xl
from virtintrospect.errors import MemoryAccessError, TargetGoneError, VirtIntrospectError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session, open_session

_PATIENCE = 240.0
_RAM_MIB = 192
_BALLOON_MIB = 32
#: Where a guest says how much memory it wants to have, in KiB.
_TARGET = "/sys/devices/system/xen_memory/xen_memory0/target_kb"
#: Pages of a guest that it may not use itself, or that move a little all the time.
_FEW = 512


@pytest.fixture
def own(guest: XenGuest) -> Iterator[XenGuest]:
    """A small guest beside the one of the other tests."""
    config = XenConfig(guest.config.kind, guest.config.kernel, ram_mib=_RAM_MIB)
    with XenGuest(config) as running:
        yield running


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, xl("list")
        time.sleep(0.5)


def test_a_guest_that_awaits_its_balloon(guest: XenGuest) -> None:
    """It may have less than it believes, until its balloon driver runs: looking waits for that."""
    if guest.config.kind == "pv":
        pytest.skip("a PV guest knows from the beginning what it has")
    source, name = guest.name.removeprefix("xen:"), "awaits"
    text = Path(f"/run/guests/{source}.cfg").read_text().replace(source, name)
    path = Path(f"/run/guests/{name}.cfg")
    path.write_text(text.replace("memory=256", f"memory={_RAM_MIB}"))
    try:
        xl("create", "-p", str(path), f"maxmem={2 * _RAM_MIB}")
        with pytest.raises(MemoryAccessError, match="has not got its memory yet"):
            XenDriver().open_url("xen", name)
        xl("unpause", name)
        _until(lambda: _lists_processes(f"xen:{name}"))
    finally:
        subprocess.run(["xl", "destroy", name], capture_output=True, check=False, timeout=60)


def _lists_processes(name: str) -> bool:
    try:
        with open_session(name) as session:
            return session.processes()[0].name == b"init"
    except TargetGoneError:
        raise
    except VirtIntrospectError:  # it boots
        return False


def test_a_balloon_that_moves(own: XenGuest) -> None:
    """A session that has read everything lets go of what the balloon gives back, and finds it
    again when it comes back; who moves it does not matter."""
    number, full = str(own.domid), _pages(own)
    less = full - (_BALLOON_MIB << 8)
    with open_session(own.name) as session:
        _look_at_all(session, own)
        xl("mem-set", number, f"{_RAM_MIB - _BALLOON_MIB}m")
        _until(lambda: _reads_on(session) and abs(_pages(own) - less) < _FEW)
        _look_at_all(session, own)
        xl("mem-set", number, f"{_RAM_MIB}m")
        _until(lambda: _reads_on(session) and abs(_pages(own) - full) < _FEW)
        _look_at_all(session, own)
        # Of this one Xen is told nothing.
        own.run(f"echo $(($(cat {_TARGET}) - {_BALLOON_MIB << 10})) > {_TARGET}")
        _until(lambda: _reads_on(session) and abs(_pages(own) - less) < _FEW)
        _look_at_all(session, own)


def _pages(guest: XenGuest) -> int:
    """Pages that a guest has, as Xen says."""
    with Hypervisor() as hypervisor:
        return hypervisor.info(guest.domid).pages


def _reads_on(session: Session) -> bool:
    return bool(session.processes())


def _look_at_all(session: Session, guest: XenGuest) -> None:
    """All that Xen says the guest has is found and mapped; tables are as the guest has them."""
    linux = session.guest
    assert isinstance(linux, LinuxGuest)
    before = guest.snapshot()
    ours = linux.processes()
    assert compare.processes(ours, before, guest.snapshot()) == []
    as_others: Any = guest  # what is asked of it is there
    agree(as_others, lambda: meminfo(as_others), lambda: our_meminfo(linux), SLACK)
    found = sum(region.size for region in session.target.memory.resident()) >> 12
    assert abs(found - _pages(guest)) < _FEW


def test_a_guest_that_is_saved(own: XenGuest, tmp_path: Path) -> None:
    """It has ended for who looks at it; restored, it is another domain with the same processes."""
    name, saved = own.name.removeprefix("xen:"), str(tmp_path / "saved")
    with open_session(own.name) as session:
        before = {process.pid: process.name for process in session.processes()}
        xl("save", name, saved, timeout=_PATIENCE)
        with pytest.raises(TargetGoneError):
            session.target.memory.read(0x100000, 64)
    xl("restore", saved, timeout=_PATIENCE)
    Path(saved).unlink()
    with open_session(own.name) as session:
        after = {process.pid: process.name for process in session.processes()}
    lasting = {pid: comm for pid, comm in before.items() if not comm.startswith(b"kworker")}
    assert lasting.items() <= after.items()
