"""Without libvirt: ``list``, word of domains that come and go, and the daemon."""

from __future__ import annotations

import json
import queue
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from virtintrospect_xen.driver import XenDriver
from virtintrospect_xen.source import XenSource

from tests.daemon.running import COMMAND, Running
from tests.xen.lab.guest import XenGuest, xl
from virtintrospect.domain import Event
from virtintrospect.errors import MemoryAccessError, NoSuchTargetError


@contextmanager
def _created(guest: XenGuest, name: str) -> Iterator[str]:
    """A small domain that has not run yet, beside the guest."""
    own = guest.name.removeprefix("xen:")
    source = Path(f"/run/guests/{own}.cfg").read_text()
    path = Path(f"/run/guests/{name}.cfg")
    path.write_text(source.replace(own, name).replace("256", "128"))
    xl("create", "-p", str(path))
    try:
        yield name
    finally:
        subprocess.run(["xl", "destroy", name], capture_output=True, check=False, timeout=60)


def _command(*words: str, code: int = 0) -> str:
    done = subprocess.run(
        [COMMAND, "-c", "xen:", *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout if not code else done.stderr


def test_list(guest: XenGuest) -> None:
    (row,) = json.loads(_command("list", "-o", "json"))
    assert row["id"] == guest.domid
    assert row["name"] == guest.name.removeprefix("xen:")
    assert row["kernel"] == guest.release
    assert row["state"] == "running"


def test_a_target_by_name_number_and_uuid(guest: XenGuest) -> None:
    name = guest.name.removeprefix("xen:")
    with XenSource() as source:
        by_name = source.domain(name)
        assert source.domain(str(guest.domid)) == by_name == source.domain(by_name.uuid)
        with pytest.raises(NoSuchTargetError):
            source.domain("nobody")
    processes = json.loads(_command("ps", name, "-o", "json"))
    assert processes[0]["name"] == "init"
    assert "no domain 'nobody'" in _command("ps", "nobody", code=3)


def test_coming_and_going_is_told(guest: XenGuest) -> None:
    events: queue.Queue[Event] = queue.Queue()
    with XenSource(events.put) as source:
        with _created(guest, "told") as name:
            happened = events.get(timeout=60)
            while (happened.what, happened.name) != ("started", name):
                happened = events.get(timeout=60)
            domain = source.domain(name)
            assert domain.uuid == happened.uuid
            assert domain.arriving
            with pytest.raises(MemoryAccessError, match="not all there yet"):
                XenDriver().open(domain)
        happened = events.get(timeout=60)
        assert (happened.what, happened.uuid) == ("stopped", domain.uuid)


def test_daemon_without_libvirt(guest: XenGuest, tmp_path: Path) -> None:
    """It attaches to what runs, to what comes, and lets go of what goes."""
    name = guest.name.removeprefix("xen:")
    daemon = Running(tmp_path, "xen:")
    try:
        row = daemon.wait(name)
        assert row["kernel"] == guest.release
        assert row["driver"] == "xen"
        with _created(guest, "comes"):
            daemon.wait("comes", "seen")
        daemon.wait("comes", "gone")
    finally:
        daemon.stop()
