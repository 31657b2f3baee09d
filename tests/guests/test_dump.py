"""`dump` of a running guest: all formats give the same tables, to us and to other programs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtintrospect.acquire import FORMATS
from virtintrospect.memory.base import merge
from virtintrospect.memory.elfcore import ElfCore
from virtintrospect.session import open_session

from .lab.guest import Guest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a guest's memory needs root")
PROGRAM = Path(sys.executable).with_name("virt-introspect")


def dump(guest: Guest, path: Path, *options: str) -> dict[str, object]:
    run = subprocess.run(
        [PROGRAM, "-o", "json", "dump", guest.name, path, *options], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, object] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize("name", FORMATS)
def test_same_tables_in_every_format(one_guest: Guest, folder: Path, name: str) -> None:
    path = folder / name
    with open_session(one_guest.name) as live:
        before = {process.pid for process in live.processes()}
    hashed = name == "elf"
    record = dump(one_guest, path, "--format", name, *([] if hashed else ["--no-hash"]))
    assert ("sha256" in record) == hashed
    if hashed:
        subprocess.run(["sha256sum", "-c", "--quiet", f"{name}.sha256"], cwd=folder, check=True)
    assert isinstance(record["resident"], int)
    if name == "elf":  # what the host has not got has no place there
        assert path.stat().st_size < record["resident"] * 1.5 + (32 << 20)
    assert path.stat().st_blocks * 512 < record["resident"] * 1.1 + (1 << 20)
    assert record["pause_ms"] == 0
    with open_session(str(path)) as image, open_session(one_guest.name) as live:
        assert {item.pid for item in image.processes()} & before
        assert image.modules() == live.modules()
        assert image.info().build_id == live.info().build_id
        assert image.info().arguments == live.info().arguments
        assert image.dmesg()[0] == live.dmesg()[0]
        assert image.mounts() == live.mounts()


def test_others_read_the_core(one_guest: Guest, folder: Path) -> None:
    """readelf, and crash(8), which looks for the kernel's own description."""
    path = folder / "elf"
    if not path.exists():
        dump(one_guest, path)
    with open_session(str(path)) as session:
        assert isinstance(session.memory, ElfCore)
        (note,) = (note for note in session.memory.notes if note.name == "VMCOREINFO")
        assert note.desc.startswith(f"OSRELEASE={one_guest.release}\n".encode())
    readelf = subprocess.run(["readelf", "-hln", path], capture_output=True, text=True, check=True)
    assert not readelf.stderr
    crash = subprocess.run(["crash", "--osrelease", path], capture_output=True, text=True)
    assert crash.stdout.strip() == one_guest.release


def done(journal: Path) -> int:
    """Bytes that are done by a journal, which may be written just now."""
    try:
        return int(json.loads(journal.read_text()[:4096])["done"])
    except (FileNotFoundError, ValueError):
        return 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_and_resumed(one_guest: Guest, folder: Path, how: signal.Signals) -> None:
    """Stopped in the middle, whatever by: nothing has the final name, and it goes on."""
    path = folder / f"by-{how.name}"
    stuck = (
        "import itertools, time; from virtintrospect.acquire import copy, part\n"
        "from virtintrospect.cli.main import main\n"
        "copy._NOTED_EVERY, write, calls = 0.05, part.PartFile.write, itertools.count()\n"
        "def slow(*given, **named):\n"
        "    time.sleep(0.06 if next(calls) == 100 else 60 if next(calls) > 400 else 0)\n"
        "    write(*given, **named)\n"
        "part.PartFile.write = slow\nmain()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", stuck, "dump", one_guest.name, path, "--format", "elf"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    journal = path.with_name(f"{path.name}.part.state")
    deadline = time.monotonic() + 120
    while not done(journal):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    assert not path.exists()
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "--resume goes on with it" in said
        assert "Traceback" not in said
    record = dump(one_guest, path, "--resume")
    assert record["runs"] == 2
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with open_session(str(path)) as image:
        assert image.info().release.decode() == one_guest.release
    path.unlink()


def test_an_image_becomes_another(one_guest: Guest, folder: Path) -> None:
    """ELF to LiME to ELF: the same pages, and the same tables from each."""
    first, second, third = folder / "first", folder / "second", folder / "third"
    dump(one_guest, first)
    for source, target, name in ((first, second, "lime"), (second, third, "elf")):
        subprocess.run(
            [PROGRAM, "dump", source, target, "--format", name, "--no-hash"],
            check=True, capture_output=True,
        )  # fmt: skip
    with open_session(str(first)) as one, open_session(str(third)) as other:
        regions = list(merge(one.memory.regions))
        assert regions == list(merge(other.memory.regions))
        for region in regions:
            for paddr in range(region.start, region.end, 16 << 20):
                size = min(16 << 20, region.end - paddr)
                assert one.memory.read(paddr, size) == other.memory.read(paddr, size)
        assert one.processes() == other.processes()
