"""Images inside compressed files: read as they are, bounded, and nothing is left behind."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.descriptors import descriptors
from tests.unit.memory.test_image import elf
from virtintrospect.errors import ImageFormatError, MemoryAccessError, VirtIntrospectError
from virtintrospect.memory import Region, wrapped
from virtintrospect.memory.image import open_image

MIB = 1 << 20
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
RAW = os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB) + bytes(MIB)


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
def test_raw_and_elf(tmp_path: Path, folder: Path, name: str) -> None:
    before = descriptors()
    with open_image(write(tmp_path, PACK[name](RAW))) as image:
        assert image.read(0, len(RAW)) == RAW
        assert list(image.resident()) == [Region(0, MIB), Region(3 * MIB, 4 * MIB)]
        assert not list(folder.iterdir())
    head = elf([(0x5000, MIB, 4096, MIB)]).ljust(4096, b"\0")
    with open_image(write(tmp_path, PACK[name](head + RAW[:MIB]))) as image:
        assert image.read(0x5000, MIB) == RAW[:MIB]
    assert descriptors() == before


@pytest.mark.parametrize("name", PACK)
def test_streams_one_after_the_other_and_padding(tmp_path: Path, name: str) -> None:
    pack = PACK[name]
    packed = pack(RAW[: MIB + 5]) + pack(RAW[MIB + 5 :]) + bytes(1024)
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
    assert descriptors() == before


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
    packed = bytearray(PACK[name](RAW[MIB // 2 : MIB + MIB // 2]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, min(len(packed), 64) - 1) | st.integers(4, len(packed) - 1))
        packed[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(VirtIntrospectError):
        open_image(write(tmp_path, bytes(packed))).close()
