"""Writing to the file behind shared RAM, and what others see of it meanwhile."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from virtintrospect_kvm.backing import BackingFile

from virtintrospect.errors import FaultError

PAGE = 4096


@pytest.fixture
def memfd() -> Iterator[int]:
    descriptor = os.memfd_create("ram")
    os.ftruncate(descriptor, 16 * PAGE)
    yield descriptor
    os.close(descriptor)


def test_everything_is_written_where_it_belongs(memfd: int) -> None:
    file = BackingFile(os.dup(memfd), 2 * PAGE)
    expected = bytearray(16 * PAGE)
    for offset, data in ((0, b"a"), (PAGE - 3, b"across pages"), (64, b"12345678"), (67, b"odd!")):
        file.write(offset, data)
        expected[2 * PAGE + offset : 2 * PAGE + offset + len(data)] = data
    assert os.pread(memfd, 16 * PAGE, 0) == expected
    file.close()


def test_read_into_what_is_there(memfd: int) -> None:
    """Holes, and what is behind the end of the file, are zeros; nothing comes into being."""
    os.pwrite(memfd, b"a" * PAGE, 3 * PAGE)
    file = BackingFile(os.dup(memfd), 2 * PAGE)
    out = bytearray(b"old" * PAGE)
    file.read_into(0, memoryview(out))
    assert out == bytes(PAGE) + b"a" * PAGE + bytes(PAGE)
    out = bytearray(b"old" * PAGE)
    file.read_into(13 * PAGE, memoryview(out))
    assert out == bytes(3 * PAGE)
    assert os.fstat(memfd).st_blocks * 512 == PAGE
    file.close()


def test_a_page_that_the_host_has_lost(memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken memory ends a read early, and fails the next one: what is behind it is no hole."""
    pread, preadv = os.pread, os.preadv

    def left(offset: int, size: int) -> int:
        if offset == 5 * PAGE:
            raise OSError(errno.EIO, "Input/output error")
        return min(size, 5 * PAGE - offset) if offset < 5 * PAGE else size

    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, left(at, size), at))
    monkeypatch.setattr(
        os, "preadv", lambda fd, out, at: preadv(fd, [out[0][: left(at, len(out[0]))]], at)
    )
    os.pwrite(memfd, b"a" * 16 * PAGE, 0)
    file = BackingFile(os.dup(memfd), 0)
    for first, size in ((0, 16 * PAGE), (4 * PAGE, 2 * PAGE), (5 * PAGE, 8)):
        with pytest.raises(FaultError) as caught:
            file.read(first, size)
        assert caught.value.address == 5 * PAGE
        with pytest.raises(FaultError):
            file.read_into(first, memoryview(bytearray(size)))
    assert file.read(6 * PAGE, PAGE) == b"a" * PAGE
    file.close()


def test_holes(memfd: int) -> None:
    os.pwrite(memfd, b"x", 3 * PAGE)
    os.pwrite(memfd, b"x", 4 * PAGE)
    file = BackingFile(os.dup(memfd), PAGE)
    assert file.first_hole(2 * PAGE, 2 * PAGE) is None
    assert file.first_hole(2 * PAGE, 2 * PAGE + 1) == 4 * PAGE
    assert file.first_hole(2 * PAGE - 1, 8) == 2 * PAGE - 1
    assert file.first_hole(14 * PAGE, PAGE) == 14 * PAGE
    assert file.first_hole(100 * PAGE, 1) == 100 * PAGE  # behind the end of the file
    file.close()


_WRITER = """
import itertools, sys
from virtintrospect_kvm.backing import BackingFile
file = BackingFile(int(sys.argv[1]), 0)
values = [b"\\x11" * 8, b"\\x22" * 8]
print(flush=True)
for value in itertools.cycle(values):
    file.write(8, value)
"""


def test_a_number_is_never_seen_in_part(memfd: int) -> None:
    """Looked at until both numbers were seen: who runs when is for the scheduler to say."""
    os.pwrite(memfd, b"\x11" * 16, 0)
    seen: set[int] = set()
    looks = 0
    with (
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(memfd)],
            pass_fds=[memfd], stdout=subprocess.PIPE,
        ) as writer,
        mmap.mmap(memfd, PAGE) as window,
        memoryview(window) as view,
        view.cast("Q") as words,
    ):  # fmt: skip
        assert writer.stdout is not None
        try:
            writer.stdout.readline()
            deadline = time.monotonic() + 60
            while (looks < 2000 or len(seen) < 2) and time.monotonic() < deadline:
                seen |= {words[1] for _ in range(1000)}
                looks += 1
            assert writer.poll() is None
        finally:
            writer.kill()
    assert seen == {0x1111111111111111, 0x2222222222222222}
