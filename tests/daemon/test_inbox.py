"""What the hook sends: taken where it makes sense, dropped where not."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from virtintrospect.daemon.inbox import Hint, Inbox, parse, spooled

MESSAGE: dict[str, Any] = {
    "version": 1, "driver": "qemu", "domain": "web01", "operation": "started",
    "uuid": "cf4ed360-30c0-4d6a-bdc7-6b34a34acf13", "suboperation": "begin", "extra": "-",
    "time": 1.5,
}  # fmt: skip


def test_message() -> None:
    hint = parse(json.dumps(MESSAGE).encode())
    assert hint == Hint("web01", MESSAGE["uuid"], "started")
    without = {key: value for key, value in MESSAGE.items() if key != "uuid"}
    assert parse(json.dumps(without).encode()) == Hint("web01", None, "started")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"\xff\xfe", b"[" * 3000, b"null", b"[]", b"{}", b"1" * 4000,
        json.dumps(MESSAGE | {"version": 2}).encode(),
        json.dumps(MESSAGE | {"domain": 5}).encode(),
        json.dumps(MESSAGE | {"domain": ""}).encode(),
        json.dumps(MESSAGE | {"domain": "x" * 300}).encode(),
        json.dumps(MESSAGE | {"uuid": []}).encode(),
        json.dumps(MESSAGE | {"extra": "x" * 4096}).encode(),
    ],
)  # fmt: skip
def test_nonsense(data: bytes) -> None:
    assert parse(data) is None


def test_socket_is_for_root_alone_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "hook.sock"
    for _ in range(2):  # the second time as after a SIGKILL
        inbox = Inbox(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        for data in (b"nonsense", json.dumps(MESSAGE).encode()):
            sender.send(data)
    assert [hint.domain for hint in inbox.read()] == ["web01"]
    inbox.close()
    assert not path.exists()


def test_spool(tmp_path: Path) -> None:
    assert spooled(tmp_path / "missing") == []
    for number, name in enumerate(("b", "a")):
        path = tmp_path / f"{number}-1.json"
        path.write_text(json.dumps(MESSAGE | {"domain": name}))
    (tmp_path / "2-1.json").write_bytes(b"\0" * 10_000)
    (tmp_path / "3-1.json").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "4-1.json")
    (tmp_path / "5-1.json").mkdir()
    fresh, abandoned = tmp_path / ".new", tmp_path / ".old"
    for path in (fresh, abandoned):
        path.write_text("{")
    os.utime(abandoned, (time.time() - 10_000,) * 2)
    assert [hint.domain for hint in spooled(tmp_path)] == ["b", "a"]
    assert {path.name for path in tmp_path.iterdir()} == {".new", "5-1.json"}
    assert Path("/etc/passwd").exists()
