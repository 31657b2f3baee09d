"""Images inside compressed files: read as they are, bounded, and nothing is left behind."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.descriptors import descriptors
from tests.unit.memory.test_formats import WRITERS, sample_for
from tests.unit.memory.test_image import elf
from virtintrospect.errors import ImageFormatError, MemoryAccessError, VirtIntrospectError
from virtintrospect.memory import Region, unpacked, wrapped
from virtintrospect.memory.image import open_image

MIB = 1 << 20
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
KIB = 1 << 10
#: The same at each run: by chance it would begin as a format does.
_NOISE = random.Random(1).randbytes(512 * KIB)
RAW = _NOISE[: 256 * KIB] + bytes(512 * KIB) + _NOISE[256 * KIB :] + bytes(256 * KIB)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "unpacked"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "image"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", PACK)
def test_raw_and_elf(tmp_path: Path, name: str) -> None:
    before = descriptors()
    with open_image(write(tmp_path, PACK[name](RAW))) as image:
        assert image.read(0, len(RAW)) == RAW
        assert list(image.resident()) == [Region(0, 256 * KIB), Region(768 * KIB, MIB)]
    head = elf([(0x5000, MIB, 4096, MIB)]).ljust(4096, b"\0")
    with open_image(write(tmp_path, PACK[name](head + RAW[:MIB]))) as image:
        assert image.read(0x5000, MIB) == RAW[:MIB]
    assert descriptors() - before == set()


@pytest.mark.parametrize("name", PACK)
def test_streams_one_after_the_other_and_padding(tmp_path: Path, name: str) -> None:
    pack = PACK[name]
    packed = pack(RAW[: 300 * KIB + 5]) + pack(RAW[300 * KIB + 5 :]) + bytes(1024)
    with open_image(write(tmp_path, packed)) as image:
        assert image.read(0, len(RAW)) == RAW


@pytest.mark.parametrize("name", PACK)
def test_truncated_and_damaged(tmp_path: Path, name: str) -> None:
    before = descriptors()
    packed = PACK[name](RAW)
    with pytest.raises(ImageFormatError, match="truncated"):
        open_image(write(tmp_path, packed[: len(packed) // 2]))
    broken = packed[:200] + bytes(200) + packed[400:]
    with pytest.raises(ImageFormatError, match=f"damaged {name}|truncated"):
        open_image(write(tmp_path, broken if name != "zstd" else packed[:6] + b"\xff" * 99))
    assert descriptors() - before == set()


@pytest.mark.parametrize("name", ["xz", "bzip2", "zstd"])
def test_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(wrapped, "FREELY", 4 * MIB)
    monkeypatch.setattr(wrapped, "RATIO", 100)
    with pytest.raises(ImageFormatError, match="no memory packs so well") as caught:
        open_image(write(tmp_path, PACK[name](bytes(64 * MIB))))
    assert caught.value.hint


def test_one_wrapper_only(tmp_path: Path) -> None:
    with pytest.raises(ImageFormatError, match="inside a compressed file"):
        open_image(write(tmp_path, gzip.compress(lzma.compress(RAW))))


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, gzip.compress(RAW))
    monkeypatch.setattr(wrapped, "SPARE", 1 << 62)
    with pytest.raises(MemoryAccessError, match="no space"):
        open_image(path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(MemoryAccessError, match="cannot unpack into"):
        open_image(path)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(PACK)), st.data())
def test_any_damage_is_one_error(tmp_path: Path, name: str, data: st.DataObject) -> None:
    packed = bytearray(PACK[name](RAW[: 64 * KIB] + bytes(64 * KIB)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, min(len(packed), 64) - 1) | st.integers(4, len(packed) - 1))
        packed[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(VirtIntrospectError):
        open_image(write(tmp_path, bytes(packed))).close()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_every_format_inside(tmp_path: Path, name: str, kind: str) -> None:
    sample = sample_for(kind)
    WRITERS[kind](sample, tmp_path / "plain")
    with open_image(write(tmp_path, PACK[name]((tmp_path / "plain").read_bytes()))) as image:
        assert image.regions == sample.regions
        assert image.read(0, 24 * 4096) == sample.read(0, 24 * 4096)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that something is unpacked."""
    calls: list[str] = []
    before = wrapped._copy

    def copy(path: str, *rest: int) -> int:
        calls.append(path)
        return before(path, *rest)

    monkeypatch.setattr(wrapped, "_copy", copy)
    return calls


def test_unpacked_once(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again only when the file is another one; what is kept nobody else can read."""
    calls, path = counted(monkeypatch), write(tmp_path, gzip.compress(RAW, 1))
    for _ in range(3):
        with open_image(path) as image:
            assert image.read(0, len(RAW)) == RAW
    assert len(calls) == 1
    (place,) = folder.iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(entry.stat().st_mode) & 0o077 == 0 for entry in place.iterdir())
    other = RAW[::-1]
    write(tmp_path, gzip.compress(other, 1))
    with open_image(path) as image:
        assert image.read(0, len(RAW)) == other
    assert len(calls) == 2
    assert len(list(place.iterdir())) == 2  # the older one is gone
    path.unlink()
    with open_image(write(tmp_path, bz2.compress(RAW))):
        assert len(list(place.iterdir())) == 2


def test_kept_no_longer(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A month without use, or no room."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(gzip.compress(RAW, 1))
    second.write_bytes(gzip.compress(RAW, 1))
    open_image(first).close()
    (place,) = folder.iterdir()
    (old,) = place.glob("*.image")
    os.utime(old, (0, 0))
    open_image(second).close()
    assert old not in place.iterdir()
    assert len(list(place.iterdir())) == 2
    monkeypatch.setattr(unpacked, "MOST", 600 * KIB)
    open_image(first).close()
    assert len(list(place.glob("*.image"))) == 1
    monkeypatch.setattr(unpacked, "MOST", 0)
    second.touch()
    with open_image(second) as image:
        assert image.read(0, 64) == RAW[:64]


def test_folder_of_somebody_else(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that others can write to, or a link, is not used; nothing is kept then."""
    calls, path = counted(monkeypatch), write(tmp_path, gzip.compress(RAW, 1))
    place = folder / f"virtintrospect-{os.geteuid()}"
    place.mkdir()
    place.chmod(0o777)
    for _ in range(2):
        open_image(path).close()
    place.rmdir()
    place.symlink_to(tmp_path)
    open_image(path).close()
    assert len(calls) == 3
    assert list(folder.iterdir()) == [place]
    place.unlink()
    monkeypatch.setattr(unpacked.Cache, "new", lambda _: None)  # a file system without O_TMPFILE
    with open_image(path) as image:
        assert image.read(0, 64) == RAW[:64]
    assert not list(place.iterdir())


def test_damaged_is_not_kept(tmp_path: Path, folder: Path) -> None:
    packed = gzip.compress(RAW, 1)
    with pytest.raises(ImageFormatError):
        open_image(write(tmp_path, packed[: len(packed) // 2]))
    (place,) = folder.iterdir()
    assert not list(place.iterdir())


@pytest.mark.parametrize("name", PACK)
def test_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(wrapped, "PATIENCE", 0)
    monkeypatch.setattr(wrapped, "EARNS_A_SECOND", 1 << 40)
    with pytest.raises(ImageFormatError, match="more time") as caught:
        open_image(write(tmp_path, PACK[name](bytes(4 * MIB))))
    assert caught.value.hint


def test_file_without_a_name_is_not_kept(folder: Path) -> None:
    descriptor = os.memfd_create("image")
    os.write(descriptor, gzip.compress(RAW, 1))
    try:
        with open_image(f"/proc/self/fd/{descriptor}") as image:
            assert image.read(0, 64) == RAW[:64]
    finally:
        os.close(descriptor)
    (place,) = folder.iterdir()
    assert not list(place.iterdir())
