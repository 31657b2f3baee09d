"""docs/support.md for Xen guests: every command on each kind, and on what ``xl dump-core`` writes.

``make support-xen`` records the columns.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import support
from tests.xen.lab.guest import XenGuest, xl


def _column(guest: XenGuest, suffix: str = "") -> str:
    """Its column's name there, for the kernel that the page is about."""
    name = f"Xen {guest.config.kind.upper()}{suffix}"
    if guest.config.kernel != "6.1":
        pytest.skip("the page is about another kernel")
    return name


def test_every_command(guest: XenGuest, tmp_path: Path) -> None:
    support.check(_column(guest), guest.name, tmp_path)


def test_every_command_on_a_core(guest: XenGuest, tmp_path: Path) -> None:
    column = _column(guest, " core")
    core, folder = tmp_path / "guest.core", tmp_path / "written"
    folder.mkdir()
    xl("dump-core", str(guest.domid), str(core), timeout=900)
    try:
        support.check(column, str(core), folder)
    finally:
        core.unlink()
