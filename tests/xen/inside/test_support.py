"""Every command on a guest of Xen, live and as a core, against docs/support.md.

The page cannot be written here: what is to be recorded goes out as a line.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import support
from tests.xen.lab.guest import XenGuest, xl
from tests.xen.lab.parts import COLUMN


def _check(column: str, target: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not support.RECORD:
        support.check(column, target, folder)
        return
    ours = support.look(target, (), folder)
    with capsys.disabled():
        print(f"\n{COLUMN}{json.dumps({column: ours})}")


def test_every_command(guest: XenGuest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _check(f"Xen {guest.config.kind.upper()}", guest.name, tmp_path, capsys)


def test_every_command_on_a_core(
    guest: XenGuest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core, files = tmp_path / "guest.core", tmp_path / "files"
    files.mkdir()
    xl("dump-core", str(guest.domid), str(core), timeout=900)
    _check(f"Xen {guest.config.kind.upper()} core", str(core), files, capsys)
    core.unlink()
