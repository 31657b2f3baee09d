"""Memory images of every format, and the notes in them."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import struct
import tempfile
from itertools import islice
from pathlib import Path

import zstandard

from tests.fuzz.parsers.target import Target
from tests.unit.memory.test_formats import ONE_PIECE, PAGE, WRITERS, Sample
from tests.unit.memory.test_image import elf, note
from tests.unit.memory.test_xencore import PAGES, PV, core
from virtintrospect.errors import FaultError
from virtintrospect.memory import PhysicalMemory, Region, cpunotes
from virtintrospect.memory.image import open_image

_PIECE = 64 << 10
_SMALL = (Region(0, 6 * PAGE), Region(16 * PAGE, 20 * PAGE))
_STATE = struct.pack("<II", 1, 0) + bytes(8 * 18 + 10 * 24 + 5 * 8 + 8)


def _written(kind: str) -> bytes:
    whole = kind in ("stream", "saved")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        WRITERS[kind](
            Sample(Region(0, min(ONE_PIECE.size, 12 * PAGE))) if whole else Sample(*_SMALL), path
        )
        return path.read_bytes()


def _elf() -> bytes:
    notes = note(b"QEMU\0", 0, _STATE) + note(b"VMCOREINFO\0", 0, b"OSRELEASE=6.1\n")
    head = elf([(0, 4096, 4096, 4096), (1 << 32, 8192, 8192, 4096)], notes)
    return head.ljust(4096, b"\0") + b"memory" * 1400


def _elf32() -> bytes:
    return elf([(0, 4096, 4096, 4096)], bits=32, machine=3).ljust(8192, b"\x5a")


def look(image: PhysicalMemory) -> None:
    """What is done with an image: its ranges, its ends, all resident pages of a small one."""
    for region in image.regions[:32]:
        for start in {
            region.start,
            max(region.start, region.end - 16),
            (region.start + region.end) // 2,
        }:
            with contextlib.suppress(FaultError):
                image.read(start, min(_PIECE, region.end - start))
    for region in islice(image.resident(), 64):
        with contextlib.suppress(FaultError):
            image.read(region.start, min(_PIECE, region.size))
    image.gather([0, 8, PAGE, image.end], 8, [])
    cpunotes.registers(getattr(image, "notes", ()))


def _open(data: bytes) -> None:
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, data)
        with open_image(f"/proc/self/fd/{descriptor}") as image:
            look(image)
    finally:
        os.close(descriptor)


def _wrapped() -> list[bytes]:
    lime = _written("lime")
    packers = (gzip.compress, lzma.compress, bz2.compress, zstandard.ZstdCompressor().compress)
    return [pack(lime) for pack in packers] + [gzip.compress(bytes(1 << 20))]


TARGETS = [
    Target("image: raw and ELF", lambda: [_elf(), _elf32(), bytes(3 * PAGE)], _open, 120),
    *(
        Target(f"image: {kind}", lambda kind=kind: [_written(kind)], _open, 80)  # type: ignore[misc]
        for kind in WRITERS
    ),
    Target("image: Xen core", lambda: [core(PAGES), core(PAGES, magic=PV)], _open, 100),
    Target("image: compressed", _wrapped, _open, 120),
]  # fmt: skip
