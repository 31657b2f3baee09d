"""Dumps whose pieces go past the page cache (O_DIRECT), and file systems that do not take that."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import threading
from pathlib import Path

import pytest

from tests.descriptors import descriptors
from tests.unit.test_dump import MIB, NOTES, PAGE, Memory, Pausing, memory_of
from virtintrospect.acquire import FORMATS, Origin, dump, part
from virtintrospect.errors import OutputError
from virtintrospect.memory.base import merge
from virtintrospect.memory.image import open_image
from virtintrospect.model.acquisition import Acquisition


@pytest.fixture
def full() -> Origin:
    """All of its memory is noise: as an ELF core, nearly all is written past the page cache."""
    origin = Origin(Pausing(), "guest 1", notes=list(NOTES))
    memory = memory_of(origin)
    memory.data = {
        page: hashlib.md5(page.to_bytes(8)).digest()
        for start, end in merge(Memory.regions)
        for page in range(start, end, PAGE)
    }
    memory.resident = lambda: merge(Memory.regions)  # type: ignore[method-assign]
    return origin


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Bytes that ``os.pwrite`` was given, and whether past the page cache."""
    found, pwrite = [], os.pwrite

    def write(descriptor: int, data: memoryview | bytes, offset: int) -> int:
        done = pwrite(descriptor, data, offset)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        found.append((done, bool(flags & os.O_DIRECT)))
        return done

    monkeypatch.setattr(os, "pwrite", write)
    return found


def check_full(path: Path, done: Acquisition) -> None:
    assert done.resident == 6 * MIB
    assert done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with open_image(path) as image:
        for start, end in merge(Memory.regions):
            for page in range(start, end, PAGE):
                assert image.read(page, 16) == hashlib.md5(page.to_bytes(8)).digest()


def takes_direct(folder: Path) -> bool:
    """Whether the file system of a folder does."""
    try:
        descriptor = os.open(folder / "direct", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    except OSError:
        return False
    try:
        return os.pwrite(descriptor, mmap.mmap(-1, PAGE), 0) == PAGE
    except OSError:
        return False
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_much_goes_past_the_page_cache(
    tmp_path: Path, full: Origin, written: list[tuple[int, bool]], name: str
) -> None:
    """Not what is at no page's border (LiME), nor where the hash is longer at it than the copy."""
    before = descriptors()
    check_full(tmp_path / "out", dump(full, tmp_path / "out", name))
    assert descriptors() - before == set()
    direct, can = sum(size for size, past in written if past), takes_direct(tmp_path)
    assert direct == (6 * MIB if name == "elf" and can else 0)
    del written[:]
    dump(full, tmp_path / "unhashed", name, digest=False)
    assert (tmp_path / "unhashed").read_bytes() == (tmp_path / "out").read_bytes()
    direct = sum(size for size, past in written if past)
    assert direct == (6 * MIB if name != "lime" and can else 0)


def test_a_file_system_that_does_not_take_it(
    tmp_path: Path, full: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so when the file is opened, or not before the first write; some write a part."""
    pwrite, tried = os.pwrite, []

    def refuse(descriptor: int, data: memoryview | bytes, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            tried.append(len(data))
            if len(tried) > 1:
                raise OSError(errno.EINVAL, "Invalid argument")
            data = data[:PAGE]
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    before = descriptors()
    check_full(tmp_path / "out", dump(full, tmp_path / "out", "elf"))
    assert len(tried) in (0, 2)
    monkeypatch.setattr(part, "_past_page_cache", lambda _: -1)
    check_full(tmp_path / "other", dump(full, tmp_path / "other", "elf"))
    assert len(tried) in (0, 2)
    assert descriptors() - before == set()


def test_no_space_past_the_page_cache(
    tmp_path: Path, full: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the file stays, and it goes on where it was."""
    pwrite = os.pwrite

    def fill(descriptor: int, data: memoryview | bytes, offset: int) -> int:
        if offset > 3 * MIB and len(data) > 4 * PAGE:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, offset)

    threads, before = threading.active_count(), descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fill)
        with pytest.raises(OutputError, match="No space left"):
            dump(full, tmp_path / "out", "elf")
    memory_of(full).looked_at = []
    done = dump(full, tmp_path / "out", "elf", resume=True)
    check_full(tmp_path / "out", done)
    assert min(memory_of(full).looked_at) == 3 * MIB
    assert done.runs == 2
    assert threading.active_count() <= threads  # of an earlier test's some may end at any moment
    assert descriptors() - before == set()
