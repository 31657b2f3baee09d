"""A guest's memory in its life: it comes late, it is saved and restored."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from virtintrospect_xen.driver import XenDriver

from tests.xen.lab.guest import XenConfig, XenGuest, xl
from virtintrospect.errors import MemoryAccessError, TargetGoneError, VirtIntrospectError
from virtintrospect.session import open_session

_PATIENCE = 240.0
_RAM_MIB = 192


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
