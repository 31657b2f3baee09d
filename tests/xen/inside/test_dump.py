"""What ``xl dump-core`` writes of a real guest, read as an image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests import compare
from tests.guests.lab.truth import Snapshot
from tests.xen.lab.guest import XenGuest, xl
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import open_session

pytest.importorskip("virtintrospect.memory.xencore")


@pytest.fixture
def core(guest: XenGuest, tmp_path: Path) -> Iterator[tuple[Snapshot, Path]]:
    """What the guest says of itself, then its core."""
    path = tmp_path / "guest.core"
    before = guest.snapshot()
    xl("dump-core", str(guest.domid), str(path), timeout=1200)
    yield before, path
    path.unlink()


def _names(snapshot: Snapshot) -> set[tuple[int, bytes]]:
    return {(pid, process.stat.comm) for pid, process in snapshot.processes.items()}


@pytest.mark.timeout(1800)
def test_tables_of_a_core(core: tuple[Snapshot, Path], guest: XenGuest) -> None:
    before, path = core
    lasting = _names(before) & _names(guest.snapshot())
    with open_session(guest.name) as live:
        registers = live.target.registers(0)  # type: ignore[attr-defined]
    with open_session(str(path)) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        assert linux.info().release.decode() == guest.release
        # The guest ran on between its word and the dump: what lasts is compared.
        mine = {process.pid: process.name for process in linux.processes()}
        for pid, name in lasting:
            # /proc cuts the names of workers at 15 bytes.
            if not name.startswith(b"kworker"):
                assert mine.get(pid, b"")[: len(name)] == name
        assert compare.modules(linux.modules(), before) == []
        assert compare.log(linux.dmesg(), before) == []
        assert linux.take_problems() == []
        found = session.target.registers(0)  # type: ignore[attr-defined]
        assert found["cr4"] == registers["cr4"]
