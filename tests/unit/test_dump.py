"""Dumps of built memory: what is in the file, what is not, and every way that it can end early."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.descriptors import descriptors
from virtintrospect.acquire import FORMATS, Origin, buffers, dump, part
from virtintrospect.acquire.digest import Digest
from virtintrospect.acquire.layout import lay_out, outline
from virtintrospect.driver import Target
from virtintrospect.errors import (
    FaultError,
    NotWritableError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from virtintrospect.memory import PhysicalMemory, Region
from virtintrospect.memory.base import merge
from virtintrospect.memory.cpunotes import Note, qemu_note, registers, status_note
from virtintrospect.memory.elfcore import ElfCore
from virtintrospect.memory.image import open_image

PAGE = 4096
MIB = 1 << 20


class Memory(PhysicalMemory):
    """RAM in two regions that is there in parts, and may stop answering."""

    regions = (Region(0, MIB), Region(MIB, 4 * MIB), Region(16 * MIB, 18 * MIB))

    def __init__(self) -> None:
        self.data = {5 * PAGE: b"a", 2 * MIB + PAGE: b"b", 16 * MIB: b"c", 18 * MIB - PAGE: b"d"}
        self.looked_at: list[int] = []
        self.broken: set[int] = set()
        self.interrupt_at = -1

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:  # noqa: ARG002
        if paddr <= self.interrupt_at < paddr + size:
            raise KeyboardInterrupt
        pages = range(paddr, paddr + size, PAGE)
        self.looked_at += pages
        if self.broken & set(pages):
            raise FaultError(min(self.broken & set(pages)), size)
        return b"".join((self.data.get(page, b"\0") * PAGE)[:PAGE] for page in pages)

    def resident(self) -> Iterator[Region]:
        yield Region(0, MIB)
        yield Region(2 * MIB, 3 * MIB)
        yield Region(16 * MIB, 18 * MIB)


class Still(Target):
    """A target that cannot be paused."""

    transport = "built"

    def __init__(self) -> None:
        self._memory = Memory()

    @property
    def memory(self) -> Memory:
        return self._memory

    def close(self) -> None:
        pass


class Pausing(Still):
    """One that can, and tells."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def pause(self) -> float:
        self.calls.append("pause")
        return time.monotonic()

    def resume(self) -> None:
        self.calls.append("resume")


NOTES = [Note("VMCOREINFO", 0, b"OSRELEASE=6.1\nX=1\n"), Note("QEMU", 0, b"odd")]


@pytest.fixture
def origin() -> Origin:
    return Origin(Pausing(), "guest 1", notes=list(NOTES))


def memory_of(origin: Origin) -> Memory:
    assert isinstance(origin.target, Still)
    return origin.target.memory


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(tmp_path: Path, origin: Origin, name: str) -> None:
    path, before, seen = tmp_path / "out", descriptors(), []
    done = dump(origin, path, name, progress=lambda *progress: seen.append(progress))
    assert descriptors() - before == set()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (done.format, done.resident, done.holes) == (name, 4 * PAGE, 6 * MIB - 4 * PAGE)
    assert (done.unreadable, done.pause_ms, done.runs) == (0, 0, 1)
    assert done.size == path.stat().st_size
    assert done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    # LiME's headers put pages across the borders of blocks.
    assert path.stat().st_blocks * 512 <= (4 * 2 + 4) * PAGE
    assert not set(memory_of(origin).looked_at) & set(range(MIB, 2 * MIB, PAGE))
    assert seen[-1] == ((4 if name == "elf" else 6) * MIB,) * 2
    with open_image(path) as image:
        for page, letter in memory_of(origin).data.items():
            assert image.read(page, PAGE) == letter * PAGE
        assert (
            image.read(0, 4 * MIB).strip(b"\0")
            == b"a" * PAGE + image.read(6 * PAGE, 2 * MIB - 5 * PAGE) + b"b" * PAGE
        )
        if name == "elf":
            assert isinstance(image, ElfCore)
            assert image.notes == NOTES
            assert list(merge(image.regions)) == [Region(0, 4 * MIB), Region(16 * MIB, 18 * MIB)]


def test_readelf_finds_nothing_wrong(tmp_path: Path, origin: Origin) -> None:
    dump(origin, tmp_path / "out", "elf")
    run = subprocess.run(
        ["readelf", "-hl", tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert not run.stderr
    assert "Type:                              CORE" in run.stdout
    assert run.stdout.count("LOAD") == 5  # two of them show zeros


def test_a_core_is_no_larger_than_what_the_host_has(tmp_path: Path, origin: Origin) -> None:
    """4 of 6 MiB; the two that are not there are the same one of zeros, which cannot be changed."""
    path = tmp_path / "out"
    done = dump(origin, path, "elf")
    assert 5 * MIB < done.size < 5 * MIB + 2 * PAGE
    with open_image(path, in_place=True) as image:
        starts = [0, MIB, 2 * MIB, 3 * MIB, 16 * MIB]
        assert [region.start for region in image.regions] == starts
        assert image.read(MIB - PAGE, MIB + PAGE) == bytes(MIB + PAGE)
        assert list(image.resident()) == [
            Region(page, page + PAGE) for page in memory_of(origin).data
        ]
        for page in (MIB, 4 * MIB - PAGE):
            with pytest.raises(NotWritableError, match="at other addresses"):
                image.write(page, b"new")
        image.write(2 * MIB, b"new")
        assert image.read(2 * MIB, 4) == b"new\0"
        assert image.read(MIB, MIB) == bytes(MIB)


def test_many_ranges_are_few_in_a_core() -> None:
    """Of 10,000 ranges 1,001 are told apart; 100 GiB of zeros are shown in some 1,000 pieces."""

    class Scattered(Memory):
        regions = (Region(0, 101 << 30),)  # type: ignore[assignment]

        def resident(self) -> Iterator[Region]:
            for number in range(10_000):
                at = number * 10 * MIB + number % 7 * PAGE
                yield Region(at, at + PAGE)

    runs = outline(Scattered())
    assert len(runs) == 1001
    assert runs == sorted(runs)
    layout = lay_out("elf", Scattered.regions, runs, [], "x86_64")
    assert len(layout.parts) == 1001
    assert len(layout.heads[0][1]) < 4000 * 56
    assert outline(Still().memory)[-1] == Region(16 * MIB, 18 * MIB)


def test_nothing_but_zeros(tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "resident", lambda _: iter(()))
    done = dump(origin, tmp_path / "out", "elf")
    assert (done.resident, done.holes) == (0, 6 * MIB)
    with open_image(tmp_path / "out") as image:
        assert image.read(0, 4 * MIB) == bytes(4 * MIB)


def test_a_resumed_core_has_the_places_it_had(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host has now is more: the file goes on as it began."""
    path, memory = tmp_path / "out", memory_of(origin)
    memory.interrupt_at = 17 * MIB
    with pytest.raises(KeyboardInterrupt):
        dump(origin, path, "elf")
    memory.interrupt_at = -1
    monkeypatch.setattr(Memory, "resident", lambda self: iter(self.regions))
    done = dump(origin, path, "elf", resume=True)
    assert done.size < 5 * MIB + 2 * PAGE
    assert done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with open_image(path) as image:
        assert image.read(2 * MIB + PAGE, 4) == b"bbbb"


def test_a_hash_far_behind_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes does not wait for it, and it keeps little in memory."""
    monkeypatch.setattr(buffers, "_MOST", 2 << 20)
    monkeypatch.setattr(Memory, "resident", lambda self: iter(merge(self.regions)))
    origin = Origin(Still(), "guest 1")
    behind, reads, read = threading.Event(), [], part.PartFile.read

    def wait_and_update(self: Digest, data: memoryview | bytes) -> None:
        assert behind.wait(60)
        update(self, data)

    def note_and_read(self: part.PartFile, offset: int, size: int) -> bytes:
        reads.append((offset, size))
        return read(self, offset, size)

    def all_is_copied(done: int, total: int) -> None:
        if done == total:
            behind.set()

    update = Digest._update
    monkeypatch.setattr(Digest, "_update", wait_and_update)
    monkeypatch.setattr(part.PartFile, "read", note_and_read)
    done = dump(origin, tmp_path / "out", "raw", progress=all_is_copied)
    assert done.sha256 == hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest()
    assert [offset // MIB for offset, size in reads if size] == [1, 2, 3, 16, 17]


def test_registers_go_there_and_back() -> None:
    values = {"rip": 0xFFFF_FFFF_8100_0000, "cr3": 0x1000, "gs_base": 5, "cs": 16, "cr4": 0x6F0}
    (found,) = registers([qemu_note(values)])
    assert {name: value for name, value in found.items() if value} == values


def test_a_note_of_a_32_bit_arm() -> None:
    """Its words have 4 bytes; the registers begin at 72 (target/arm/arch_dump.c)."""
    values = {"r0": 1, "r11": 0xC1A1_01AC, "sp": 0xC1A0_1F90, "pc": 0xC041_D548, "cpsr": 0x93}
    note = status_note(2, values, "arm")
    assert note is not None
    assert len(note.desc) == 148
    assert note.desc[72:76] == b"\1\0\0\0"
    (found,) = registers([note], "arm")
    assert {name: found[name] for name in values} == values
    assert registers([note._replace(desc=note.desc[:140])], "arm") == []


def test_what_is_there_is_not_replaced(tmp_path: Path, origin: Origin) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="there already") as caught:
        dump(origin, path, "raw")
    assert "--force" in caught.value.hint
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    dump(origin, path, "raw", force=True, digest=False)
    assert path.stat().st_size == 18 * MIB
    for other, words in ((tmp_path, "no regular file"), (Path("/dev/null"), "no regular file")):
        with pytest.raises(UsageError, match=words):
            dump(origin, other, "raw", force=True)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(UsageError, match="no regular file"):
        dump(origin, tmp_path / "link", "raw", force=True)
    with pytest.raises(OutputError, match="No such file"):
        dump(origin, tmp_path / "no" / "where", "raw")


@pytest.mark.parametrize("name", FORMATS)
def test_interrupted_and_resumed(tmp_path: Path, origin: Origin, name: str) -> None:
    """All of it, by another run; the hash is that of the whole file."""
    path, memory = tmp_path / "out", memory_of(origin)
    memory.interrupt_at = 17 * MIB
    before = descriptors()
    with pytest.raises(KeyboardInterrupt):
        dump(origin, path, name, pause=True)
    assert descriptors() - before == set()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.part", "out.part.state"]
    assert origin.target.calls == ["pause", "resume"]  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="was not finished"):
        dump(origin, path, name)
    memory.interrupt_at, memory.looked_at = -1, []
    done = dump(origin, path, name, resume=True)
    assert min(memory.looked_at) == 17 * MIB
    assert (done.runs, done.resident) == (2, 4 * PAGE)
    assert done.pause_ms > 0
    assert done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    dump(origin, tmp_path / "at once", name)
    assert path.read_bytes() == (tmp_path / "at once").read_bytes()


def test_resume_is_for_the_same_guest_only(tmp_path: Path, origin: Origin) -> None:
    path = tmp_path / "out"
    with pytest.raises(UsageError, match="no unfinished dump"):
        dump(origin, path, "elf", resume=True)
    memory_of(origin).interrupt_at = 16 * MIB
    with pytest.raises(KeyboardInterrupt):
        dump(origin, path, "elf")
    memory_of(origin).interrupt_at = -1
    with pytest.raises(UsageError, match="of another guest"):
        dump(Origin(origin.target, "guest 2", notes=origin.notes), path, "elf", resume=True)
    with pytest.raises(UsageError, match="another format"):
        dump(origin, path, "lime", resume=True)
    journal = tmp_path / "out.part.state"
    whole = journal.read_text()
    numbers = [
        whole.replace('"done": ', f'"done": {sign}')
        for sign in ("-", 'NaN, "x": ', "1e9", "9" * 30)
    ]
    for damaged in ("", "[]", whole.replace('"done"', '"gone"'), whole.rstrip()[:-5], *numbers):
        journal.write_text(damaged)
        with pytest.raises(UsageError):
            dump(origin, path, "elf", resume=True)
    journal.write_text(whole)
    dump(origin, path, "elf", resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_begun_anew_by_force(tmp_path: Path, origin: Origin) -> None:
    memory_of(origin).interrupt_at = 16 * MIB
    with pytest.raises(KeyboardInterrupt):
        dump(origin, tmp_path / "out", "elf")
    memory_of(origin).interrupt_at = -1
    assert dump(origin, tmp_path / "out", "raw", force=True).runs == 1


def test_interrupted_before_anything(tmp_path: Path, origin: Origin) -> None:
    memory_of(origin).interrupt_at = 0
    with pytest.raises(KeyboardInterrupt):
        dump(origin, tmp_path / "out", "raw")
    assert not list(tmp_path.iterdir())


def test_pages_that_fault(tmp_path: Path, origin: Origin) -> None:
    """What the guest gave back meanwhile is zeros, and counted."""
    memory_of(origin).broken = {5 * PAGE, 7 * PAGE}
    done = dump(origin, tmp_path / "out", "raw")
    assert (done.unreadable, done.resident) == (2 * PAGE, 3 * PAGE)
    with open_image(tmp_path / "out") as image:
        assert image.read(5 * PAGE, PAGE) == bytes(PAGE)
        assert image.read(2 * MIB + PAGE, 4) == b"bbbb"


def test_without_pause(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot stop the guest"):
        dump(Origin(Still()), tmp_path / "out", "raw", pause=True)
    assert not list(tmp_path.iterdir())


def test_two_at_once(tmp_path: Path, origin: Origin) -> None:
    memory_of(origin).interrupt_at = 16 * MIB
    with pytest.raises(KeyboardInterrupt):
        dump(origin, tmp_path / "out", "raw")
    memory_of(origin).interrupt_at = -1
    with (tmp_path / "out.part").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for how in ("resume", "force"):
            with pytest.raises(OutputError) as caught:
                dump(origin, tmp_path / "out", "raw", **{how: True})  # type: ignore[arg-type]
            assert "another dump" in caught.value.hint
    dump(origin, tmp_path / "out", "raw", force=True)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("mounting needs root")
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder])
    if mount.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_disk_full(tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, and the reserve that comes before it; both can go on with more space."""
    memory = memory_of(origin)
    memory.data |= dict.fromkeys(range(0, MIB, PAGE), b"x")
    with small_disk(tmp_path / "small", "512k") as disk:
        with pytest.raises(OutputError, match="only 256 MiB are left") as caught:
            dump(origin, disk / "out", "raw")
        assert caught.value.hint
        assert not list(disk.iterdir())
        monkeypatch.setattr(part, "SPARE", 0)
        memory.data = dict.fromkeys(range(2 * MIB, 3 * MIB, PAGE), b"x")
        with pytest.raises(OutputError, match="No space left"):
            dump(origin, disk / "out", "raw")
        memory.data = {2 * MIB: b"b"}
        assert dump(origin, disk / "out", "raw", resume=True).runs == 2


def test_file_too_large(tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OutputError, match="File too large") as caught:
        dump(origin, tmp_path / "out", "raw")
    assert "elf" in caught.value.hint


def test_name_taken_meanwhile(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    before = os.fsync

    def fsync(descriptor: int) -> None:
        before(descriptor)
        path.write_bytes(b"precious")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UsageError, match="come into being"):
        dump(origin, path, "raw")
    assert path.read_bytes() == b"precious"


class Registered(Pausing):
    """One whose vCPUs' registers can be read."""

    vcpus = 2

    def registers(self, vcpu: int) -> dict[str, int]:
        self.calls.append(f"registers {vcpu}")
        return {"rip": 0xFFFF_FFFF_8100_0000 + vcpu, "cr3": 0x1000, "rsp": 7}


def test_registers_are_of_the_moment_of_the_memory(tmp_path: Path) -> None:
    target = Registered()
    dump(Origin(target, notes=NOTES[:1]), tmp_path / "out", "elf", pause=True)
    assert target.calls == ["pause", "registers 0", "registers 1", "resume"]
    with open_image(tmp_path / "out") as image:
        assert isinstance(image, ElfCore)
        names = [note.name for note in image.notes]
        assert names == ["CORE", "CORE", "QEMU", "QEMU", "VMCOREINFO"]
        for notes in (image.notes, image.notes[:2]):  # QEMU's, and else those of programs
            first, second = registers(notes)
            assert (first["rip"], second["rip"], second["rsp"]) == (
                0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_0001, 7,
            )  # fmt: skip
    again = Origin(target, notes=list(image.notes))
    assert again.all_notes() == image.notes


def test_command_offers_every_format(tmp_path: Path, origin: Origin) -> None:
    from virtintrospect.cli.dump import _FORMATS

    assert _FORMATS == FORMATS
    with pytest.raises(UsageError, match="no format 'qcow2'"):
        dump(origin, tmp_path / "out", "qcow2")


def test_raw_without_firmware_far_above() -> None:
    ram, rom = Region(0, 64 * MIB), Region(4096 * MIB - 256 * 1024, 4096 * MIB)
    high = Region(4096 * MIB, 5000 * MIB)
    for regions, size in (
        ([ram, rom], 64 * MIB),
        ([ram, rom, high], 5000 * MIB),
        ([rom], 4096 * MIB),
        ([ram, Region(100 * MIB, 101 * MIB)], 101 * MIB),
    ):
        assert lay_out("raw", regions, [], [], "x86_64").size == size
    assert lay_out("elf", [ram, rom], [ram, rom], [], "x86_64").parts[-1].start == rom.start


def test_what_was_written_after_the_last_note_is_forgotten(tmp_path: Path, origin: Origin) -> None:
    """A page that is zeros when the dump goes on must not show what it was before."""
    memory, path = memory_of(origin), tmp_path / "out"
    memory.interrupt_at = 16 * MIB + 9 * PAGE
    with pytest.raises(KeyboardInterrupt):
        dump(origin, path, "raw")
    with (tmp_path / "out.part").open("r+b") as file:
        file.seek(16 * MIB)
        file.write(b"old" * MIB)
    memory.interrupt_at = -1
    del memory.data[16 * MIB]
    done = dump(origin, path, "raw", resume=True)
    assert done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with open_image(path) as image:
        assert image.read(16 * MIB, MIB) == bytes(MIB)
        assert image.read(2 * MIB + PAGE, 4) == b"bbbb"
