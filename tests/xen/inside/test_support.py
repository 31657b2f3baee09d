"""docs/support.md for Xen guests: every command on each kind, and on what ``xl dump-core`` writes.

``make support-xen`` records the columns.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import support
from tests.xen.lab.guest import XenGuest, xl
from virtintrospect.acquire import part


def test_every_command(guest: XenGuest, tmp_path: Path) -> None:
    support.check(f"Xen {guest.config.kind.upper()}", guest.name, tmp_path)


def test_every_command_on_a_core(
    guest: XenGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The core takes half of what the machine's dom0 has in place of a disk.
    monkeypatch.setattr(part, "SPARE", 0)
    core, folder = tmp_path / "guest.core", tmp_path / "written"
    folder.mkdir()
    xl("dump-core", str(guest.domid), str(core), timeout=900)
    try:
        support.check(f"Xen {guest.config.kind.upper()} core", str(core), folder)
    finally:
        core.unlink()
