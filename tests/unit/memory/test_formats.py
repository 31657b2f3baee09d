"""kdump, LiME and AVML images, built here: what is read, what is refused, and any damage."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.descriptors import descriptors
from tests.guests.lab.images import write_avml, write_kdump, write_lime, write_stream
from virtintrospect.errors import FaultError, ImageFormatError, VirtIntrospectError
from virtintrospect.memory import PhysicalMemory, Region, kdump
from virtintrospect.memory.image import open_image

PAGE = 4096


class Sample(PhysicalMemory):
    """Pages of zeros, of one letter, of text, and of noise that no codec makes smaller."""

    def __init__(self, *regions: Region) -> None:
        self.regions = regions or (Region(0, 24 * PAGE), Region(64 * PAGE, 104 * PAGE))
        noise = random.Random(1)  # the same bytes at each run
        self._pages = {
            number: (bytes(PAGE), b"text%4d" % number * 512, noise.randbytes(PAGE), b"x" * PAGE)[
                number % 4
            ]
            for number in range(104)
        }

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:  # noqa: ARG002
        first, last = paddr // PAGE, (paddr + size - 1) // PAGE
        whole = b"".join(self._pages[number] for number in range(first, last + 1))
        return whole[paddr % PAGE : paddr % PAGE + size]


def flattened(plain: bytes, size: int = 5000) -> bytes:
    """As QEMU writes into a pipe, the records from the last to the first."""
    head = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
    starts = range(0, len(plain), size)
    records = [
        struct.pack(">qq", at, len(plain[at : at + size])) + plain[at : at + size]
        for at in reversed(starts)
    ]
    return head + b"".join(records) + struct.pack(">qq", -1, -1)


def _flattened(memory: PhysicalMemory, path: Path) -> None:
    write_kdump(memory, path, "zlib")
    path.write_bytes(flattened(path.read_bytes()))


def _kdump(codec: str) -> Callable[[PhysicalMemory, Path], None]:
    return lambda memory, path: write_kdump(memory, path, codec)


#: What QEMU's stream can hold: RAM is in one piece.
ONE_PIECE = Region(0, 104 * PAGE)

WRITERS: dict[str, Callable[[PhysicalMemory, Path], None]] = {
    "lime": write_lime,
    "avml": write_avml,
    "flattened": _flattened,
    "stream": write_stream,
    "saved": lambda memory, path: write_stream(memory, path, saved=True),
    **{f"kdump-{codec}": _kdump(codec) for codec in ("zlib", "lzo", "snappy", "zstd")},
}


def sample_for(kind: str) -> Sample:
    return Sample(ONE_PIECE) if kind in ("stream", "saved") else Sample()


@pytest.mark.parametrize("kind", WRITERS)
def test_same_memory_in_every_format(tmp_path: Path, kind: str) -> None:
    sample = sample_for(kind)
    WRITERS[kind](sample, tmp_path / "image")
    before = descriptors()
    with open_image(tmp_path / "image") as image:
        assert image.regions == sample.regions
        for start, size in ((0, 24 * PAGE), (64 * PAGE, 40 * PAGE), (5000, 9000), (7, 1)):
            assert image.read(start, size) == sample.read(start, size)
        addresses = [70 * PAGE + 5, 3 * PAGE, 0, 65 * PAGE - 4]
        assert image.gather(addresses, 8) == sample.gather(addresses, 8)
        faults: list[int] = []
        assert image.gather([104 * PAGE, 8], 8, faults) == bytes(8) + sample.read(8, 8)
        assert faults == [0]
        with pytest.raises(FaultError):
            image.read(103 * PAGE, 2 * PAGE)
        there = {page for r in image.resident() for page in range(r.start, r.end, PAGE)}
        assert all(
            page in there or not any(sample.read(page, PAGE))
            for region in sample.regions
            for page in range(region.start, region.end, PAGE)
        )
    with pytest.raises(VirtIntrospectError):
        image.read(0, 8 * PAGE)
    assert descriptors() - before == set()


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_anywhere(tmp_path: Path, kind: str) -> None:
    """An error with an offset when it is opened, or at the read that needs what is gone."""
    path = tmp_path / "image"
    WRITERS[kind](sample_for(kind), path)
    whole = path.read_bytes()
    if kind in ("stream", "saved"):
        whole = whole[: whole.rindex(b"devices") - 15]  # what is behind RAM may be missing
    for cut in range(16, len(whole), max(1, len(whole) // 97)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ImageFormatError):
            _read_all(path)


def _read_all(path: Path) -> None:
    with open_image(path) as image:
        for region in image.regions[:64]:
            image.read(region.start, min(region.size, 1 << 20))
        list(image.resident())


@pytest.mark.parametrize("kind", WRITERS)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_is_survived(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """Bytes of headers and tables changed at random: an error of ours, or some memory."""
    whole = tmp_path / "whole"
    if not whole.exists():
        WRITERS[kind](sample_for(kind), whole)
    content = bytearray(whole.read_bytes())
    # Structures are in front and between the data; headers deserve most of it.
    ends = st.sampled_from([64, 512, 2 * PAGE, 6 * PAGE, len(content) - 1])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(8, min(data.draw(ends), len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    before = descriptors()
    with contextlib.suppress(VirtIntrospectError):
        _read_all(damaged)
    assert descriptors() - before == set()


def kdump_header(**changes: int) -> bytes:
    """A header and sub-header with single fields changed."""
    fields = {"block": PAGE, "sub": 1, "blocks": 2, "frames": 8, "split": 0} | changes
    header = struct.pack(
        "<8si390s6x16sIiiiII", b"KDUMP   ", 6, b"", b"", 0,
        fields["block"], fields["sub"], fields["blocks"], fields["frames"], 0,
    )  # fmt: skip
    sub = struct.pack("<QiiQQQQQQQQQQQ", 0, 0, fields["split"], *(0,) * 10, fields["frames"])
    return header.ljust(PAGE, b"\0") + sub.ljust(PAGE, b"\0") + bytes(2 * PAGE)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"block": 32768}, "pages of 32768"),
        ({"sub": -1}, "sub-header"),
        ({"sub": 1 << 30}, "sub-header"),
        ({"blocks": 0}, "bitmaps"),
        ({"blocks": (1 << 31) - 1}, "bitmaps"),
        ({"blocks": 1 << 17}, "truncated"),
        ({"frames": 0}, "page frames"),
        ({"frames": 1 << 31}, "page frames"),
        ({"split": 1}, "split"),
    ],
)
def test_kdump_header_that_lies(tmp_path: Path, changes: dict[str, int], word: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(kdump_header(**changes))
    with pytest.raises(ImageFormatError, match=word):
        open_image(path)


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_kdump_page_that_lies(tmp_path: Path, size: int) -> None:
    """Its descriptor claims another size: nothing is allocated by it."""
    path = tmp_path / "image"
    content = bytearray(kdump_header() + struct.pack("<qIIQ", 5 * PAGE, size, 1, 0))
    content[2 * PAGE] = content[3 * PAGE] = 1  # the first frame, in both bitmaps
    path.write_bytes(content.ljust(8 * PAGE, b"\0"))
    with open_image(path) as image, pytest.raises(ImageFormatError, match="bytes makes no sense"):
        image.read(0, 8)


def test_flattened_with_records_that_overlap(tmp_path: Path) -> None:
    """The later one counts, as if each were written in turn."""
    from virtintrospect.memory.source import FlattenedSource

    def record(at: int, data: bytes) -> bytes:
        return struct.pack(">qq", at, len(data)) + data

    parts = [(0, b"a" * 30), (10, b"b" * 5), (12, b"c" * 30), (60, b"d" * 10), (0, b"e" * 2)]
    expected = bytearray(70)
    for at, data in parts:
        expected[at : at + len(data)] = data
    path = tmp_path / "flat"
    path.write_bytes(
        b"makedumpfile".ljust(4096, b"\0")
        + b"".join(record(*part) for part in parts)
        + struct.pack(">qq", -1, -1)
    )
    with path.open("rb") as file:
        source = FlattenedSource("flat", file.fileno(), path.stat().st_size)
        assert source.size == 70
        assert source.read(0, 70) == expected
        assert source.read(11, 53) == expected[11:64]


def test_codec_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    write_kdump(Sample(), tmp_path / "image", "snappy")
    monkeypatch.setitem(sys.modules, "cramjam", None)
    with open_image(tmp_path / "image") as image:
        with pytest.raises(VirtIntrospectError) as caught:
            image.read(PAGE, 8)
        assert "virtintrospect[images]" in caught.value.hint


def test_kdump_with_a_range_in_every_byte(tmp_path: Path) -> None:
    """A bitmap of every other page: as many ranges as it has bits set."""
    path = tmp_path / "image"
    blocks = 2 * 64
    content = bytearray(kdump_header(blocks=blocks, frames=64 * PAGE * 8)[: 2 * PAGE])
    ram, there = b"\x55" * (64 * PAGE), bytes(64 * PAGE)
    path.write_bytes(content + ram + there)
    with pytest.raises(ImageFormatError, match="more ranges of RAM"):
        open_image(path)
    with path.open("wb") as file:
        file.write(content + b"\xff" * (64 * PAGE) + ram)
        file.truncate(file.tell() + 64 * PAGE * 4 * 24)
    before = kdump._MOST_RUNS
    kdump._MOST_RUNS = 100
    try:
        with open_image(path) as image:
            runs = list(image.resident())
    finally:
        kdump._MOST_RUNS = before
    assert len(runs) == 101
    assert runs[-1] == Region(200 * PAGE, image.end)


def avml(start: int, chunks: bytes) -> bytes:
    """One range of a page in a compressed AVML image."""
    head = struct.pack("<4sIQQ8x", b"AVML", 2, start, start + PAGE - 1)
    return head + chunks + struct.pack("<Q", len(chunks))


def test_avml_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "image"
    page = b"\x01" + (PAGE + 4).to_bytes(3, "little") + bytes(4 + PAGE)
    path.write_bytes(avml(PAGE, b"\xfe\0\0\0" * 3 + page))
    with open_image(path) as image:
        assert image.read(PAGE, PAGE) == bytes(PAGE)
    path.write_bytes(avml(PAGE // 2, page))  # blocks would not be where pages are
    with pytest.raises(ImageFormatError, match="within a page"):
        open_image(path)
    path.write_bytes(avml(PAGE, b"\xfe\0\0\0" * 5000 + page))
    with pytest.raises(ImageFormatError, match="nothing"):
        open_image(path)


def test_stream_of_more_ram_than_this_host_can_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    path = tmp_path / "image"
    WRITERS["stream"](sample_for("stream"), path)
    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(ImageFormatError, match="Cannot allocate"):
        open_image(path)


def test_background_snapshot_has_no_end_of_ram(tmp_path: Path) -> None:
    """Devices follow the last page at once; a stream that just stops is truncated."""
    path, sample = tmp_path / "image", sample_for("stream")
    write_stream(sample, path)
    whole = path.read_bytes()
    end = whole.rindex(struct.pack(">BIQ", 3, 2, 0x10))
    path.write_bytes(whole[:end] + b"\x04" + whole[end + 1 :])
    with open_image(path) as image:
        assert image.read(0, 24 * PAGE) == sample.read(0, 24 * PAGE)
    path.write_bytes(whole[:end])
    with pytest.raises(ImageFormatError, match="truncated"):
        open_image(path)
