"""A guest as files, against the guest's own /proc and our own tables."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtintrospect
from virtintrospect.cli.filesystem import GuestFiles
from virtintrospect.cli.main import run

from .lab.guest import Guest

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="this kernel has no FUSE")
COMMAND = Path(sys.executable).with_name("virt-introspect")


def ended(process: subprocess.Popen[str], folder: Path) -> tuple[int, str]:
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert not os.path.ismount(folder)
    return process.returncode, complaint


@pytest.fixture
def mounted(one_guest: Guest, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "guest"
    folder.mkdir()
    command = [str(COMMAND), "mount", one_guest.name, str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not os.path.ismount(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield folder
    code, complaint = ended(process, folder)
    assert (code, complaint) == (0, f"{one_guest.name} is in {folder}; Ctrl-C ends it\n")


def test_files(mounted: Path, one_guest: Guest) -> None:
    assert sorted(path.name for path in mounted.iterdir()) == ["memory", "processes", "tables"]
    info = json.loads((mounted / "tables/info.json").read_text())
    assert info["release"] == one_guest.release
    rows = json.loads((mounted / "tables/ps.json").read_text())
    pids = {row["pid"] for row in rows}
    assert {int(path.name) for path in (mounted / "processes").iterdir()} & pids >= {1, 2}
    head = (mounted / "tables/modules.csv").read_text().splitlines()[0]
    assert head.startswith("name,size,used_by")

    first = mounted / "processes/1"
    theirs = [line.split() for line in one_guest.get("/proc/1/maps").splitlines()]
    assert [line.split() for line in (first / "maps").read_bytes().splitlines()] == theirs
    assert (first / "cmdline").read_bytes().split() == (
        one_guest.get("/proc/1/cmdline").replace(b"\0", b" ").split()
    )
    names = {variable["name"] for variable in json.loads((first / "env.json").read_text())}
    assert names
    text = next(line for line in theirs if line[1] == b"r-xp")
    start = int(text[0].split(b"-")[0], 16)
    with (first / "mem").open("rb", buffering=0) as file:
        file.seek(start)
        ours = file.read(64)
        file.seek(0)
        with pytest.raises(OSError, match="Input/output error"):
            file.read(16)
    offset = int(text[2], 16)
    assert ours == one_guest.get("/proc/1/exe")[offset : offset + 64]
    assert not (mounted / "processes/2/mem").exists()
    assert (mounted / "processes/2/stack.json").exists()

    with virtintrospect.open(one_guest.name) as guest:
        assert (mounted / "memory").stat().st_size == guest.memory.end
        banner = guest.symbols.address("linux_banner")
        with (mounted / "memory").open("rb", buffering=0) as file:
            file.seek(guest.kernel.translate(banner))
            assert file.read(5) == b"Linux"
            file.seek(guest.memory.end - 4)
            assert len(file.read(16)) == 4
    for wrong in ("processes/4000000", "tables/nothing.json", "processes/1/nothing", "memory/x"):
        assert not (mounted / wrong).exists()
    with pytest.raises(OSError, match=r"Read-only|Permission|denied"):
        (mounted / "memory").write_bytes(b"x")


def test_every_file_can_be_read(one_guest: Guest) -> None:
    with virtintrospect.open(one_guest.name) as session:
        files = GuestFiles(session)
        for name in files.names("/tables"):
            content = files.open(f"/tables/{name}")(0, 1 << 26)
            if name.endswith(".json"):
                json.loads(content)
        for name in files.names("/processes/1"):
            if name != "mem":
                assert files.open(f"/processes/1/{name}")(0, 1 << 20)
        for path, code in {
            "/processes/01x": errno.ENOENT, "/processes/-1": errno.ENOENT,
            "/tables/maps.json": errno.ENOENT, "/tables": errno.EISDIR,
        }.items():  # fmt: skip
            with pytest.raises(OSError) as caught:  # noqa: PT011 (its number is looked at)
                files.open(path)
            assert caught.value.errno == code


def test_what_cannot_be_mounted(
    one_guest: Guest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["mount", one_guest.name, str(tmp_path / "nowhere")]) == 2
    assert "mkdir" in capsys.readouterr().err
    assert run(["mount", "./no/such/image", str(tmp_path)]) == 3


def test_without_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    assert run(["mount", "web01", str(tmp_path)]) == 2
    assert "virtintrospect[mount]" in capsys.readouterr().err
