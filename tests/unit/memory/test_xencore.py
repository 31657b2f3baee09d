"""Cores of Xen guests, built by hand after Xen's docs/misc/dump-core-format.txt."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.descriptors import descriptors
from virtintrospect.driver import Capability
from virtintrospect.errors import FaultError, ImageFormatError, VirtIntrospectError
from virtintrospect.imagetarget import CoreTarget, open_image_target
from virtintrospect.memory import Region
from virtintrospect.memory.image import open_image
from virtintrospect.memory.xencore import XenCore

PAGE = 4096
NONE = (1 << 64) - 1
PV, HVM = 0xF00FEBED, 0xF00FEBEE


def context(cr3: int, rip: int) -> bytes:
    """struct vcpu_guest_context: the registers that the tests look at."""
    data = bytearray(5168)
    struct.pack_into("<Q", data, 520 + 10 * 8, 0xAA)  # rax
    struct.pack_into("<QH6xQQH", data, 520 + 16 * 8, rip, 0xE033, 0x246, 0x5000, 0xE02B)
    struct.pack_into("<5Q", data, 4984, 0x80050033, 0, 0x1234, cr3, 0x2660)
    struct.pack_into("<3Q", data, 5144, 1, 2, 3)
    return bytes(data)


def core(
    pages: list[tuple[int, int, bytes]],
    *,
    magic: int = HVM,
    cr3: int = 0,
    count: int | None = None,
    page_size: int = PAGE,
    leave_out: str = "",
) -> bytes:
    """An ELF of sections: of each page the guest's frame, the machine's, and its bytes."""
    header = struct.pack("<QQQQ", magic, 1, len(pages) if count is None else count, page_size)
    notes = b"".join(
        struct.pack("<III", 4, len(body), kind) + b"Xen\0" + body
        for kind, body in ((0x2000000, b""), (0x2000001, header), (0x2000003, bytes(8)))
    )
    sections = {
        "": b"",
        ".shstrtab": b"",
        ".note.Xen": notes,
        ".xen_prstatus": context(cr3, 0xFFFF_FFFF_8100_0000),
        ".xen_p2m": b"".join(struct.pack("<QQ", own, machine) for own, machine, _ in pages),
        ".xen_pfn": b"".join(struct.pack("<Q", own) for own, _, _ in pages),
        ".xen_pages": b"".join(data.ljust(PAGE, b"\0") for _, _, data in pages),
    }
    del sections[".xen_pfn" if magic == PV else ".xen_p2m"]
    if leave_out:
        del sections[leave_out]
    sections[".shstrtab"] = b"\0".join(name.encode() for name in sections) + b"\0"
    out = bytearray(64 + 64 * len(sections))
    table, names = b"", b""
    for name, data in sections.items():
        out += bytes(-len(out) % (PAGE if name == ".xen_pages" else 8))
        kind = 3 if name == ".shstrtab" else 7 if name == ".note.Xen" else 1 if name else 0
        table += struct.pack("<IIQQQQIIQQ", len(names), kind, 0, 0, len(out), len(data), 0, 0, 8, 0)
        names += name.encode() + b"\0"
        out += data
    out[:64] = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 4, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, len(sections), 1
    )
    out[64 : 64 + len(table)] = table
    return bytes(out)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "image"
    path.write_bytes(content)
    return path


#: Not in the order of frames, and with a gap.
PAGES = [(7, 107, b"g"), (0, 55, b"zero"), (1, 56, b"one"), (2, 30, b"two"), (8, 108, b"h")]


def test_hardware_guest(tmp_path: Path) -> None:
    before = descriptors()
    with open_image(write(tmp_path, core(PAGES))) as image:
        assert isinstance(image, XenCore)
        assert not image.paravirtual
        # Pages that follow each other in memory, and not in the file, are regions that touch.
        assert image.regions[0] == Region(0, 3 * PAGE)
        assert {region.end for region in image.regions} == {3 * PAGE, 8 * PAGE, 9 * PAGE}
        assert image.read(0, 4) == b"zero"
        assert image.read(PAGE, 3) == b"one"
        assert image.read(8 * PAGE - 1, 2) == b"\0h"
        with pytest.raises(FaultError):
            image.read(3 * PAGE, 1)
    assert descriptors() - before == set()


def test_paravirtual_guest(tmp_path: Path) -> None:
    """Memory by the guest's own frames; pages that it has not are left out."""
    pages = [*PAGES, (NONE, NONE, b"none"), (9, 31, b"nine"), (NONE, 200, b"no")]
    with open_image(write(tmp_path, core(pages, magic=PV))) as image:
        assert isinstance(image, XenCore)
        assert image.paravirtual
        assert image.read(7 * PAGE, 1) == b"g"
        assert image.read(9 * PAGE, 4) == b"nine"
        assert image.read(2 * PAGE - 1, 4) == b"\0two"
        assert image.frames is not None
        assert image.frames.physical(31 * PAGE + 5) == 9 * PAGE + 5
        machine = np.array([107, 55, 200, 1000, 30], dtype=np.uint64) * np.uint64(PAGE)
        own = image.frames.physical_many(machine).tolist()
        assert [own[0], own[1], own[4]] == [7 * PAGE, 0, 2 * PAGE]
        for nowhere in own[2:4]:
            with pytest.raises(FaultError):
                image.read(nowhere, 1)


def test_page_tables_of_a_paravirtual_guest(tmp_path: Path) -> None:
    """They hold machine frames, as CR3 does: each step goes through ``frames``."""
    tables = [bytearray(PAGE) for _ in range(4)]
    vaddr = 0xFFFF_FFFF_8100_0000
    frames = (300, 41, 77, 500)
    indexes = [vaddr >> (39 - 9 * level) & 511 for level in range(4)]
    for index, table, following in zip(indexes, tables, (*frames[1:], 108), strict=True):
        struct.pack_into("<Q", table, index * 8, following * PAGE | 0x67)
    pages = [*PAGES]
    pages += [(20 + n, f, bytes(t)) for n, (f, t) in enumerate(zip(frames, tables, strict=True))]
    path = write(tmp_path, core(pages, magic=PV, cr3=300 * PAGE))
    with open_image_target(path) as target:
        assert isinstance(target, CoreTarget)
        assert isinstance(target.memory, XenCore)
        assert Capability.REGISTERS in target.capabilities()
        registers = target.registers(0)
        assert registers["cr3"] == 300 * PAGE
        assert (registers["rip"], registers["rsp"], registers["rax"]) == (vaddr, 0x5000, 0xAA)
        assert (registers["cs"], registers["ss"], registers["rflags"]) == (0xE033, 0xE02B, 0x246)
        assert (registers["cr0"], registers["cr4"]) == (0x80050033, 0x2660)
        assert registers["gs_base"] == 3
        assert target.memory.frames is not None
        entry = registers["cr3"]
        for index in indexes:
            place = target.memory.frames.physical(entry)
            entry = target.memory.read_u64(place + index * 8) & 0x000F_FFFF_FFFF_F000
        assert target.memory.read(target.memory.frames.physical(entry), 1) == b"h"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (core(PAGES, magic=1), "magic"),
        (core(PAGES, page_size=65536), "pages of 65536"),
        (core(PAGES, count=0), "make no sense"),
        (core(PAGES, count=1 << 60), "make no sense"),
        (core(PAGES, count=6), "has"),
        (core(PAGES, leave_out=".note.Xen"), "without .note.Xen"),
        (core(PAGES, leave_out=".xen_pfn"), "without .xen_pfn"),
        (core(PAGES, leave_out=".xen_pages"), "without .xen_pages"),
        (core([(1, 1, b""), (1, 1, b"")]), "twice"),
        (core([(1 << 41, 1, b"")]), "frame"),
        (core([(NONE, NONE, b"")]), "no memory"),
    ],
)
def test_cores_that_lie(tmp_path: Path, content: bytes, words: str) -> None:
    before = descriptors()
    with pytest.raises(ImageFormatError, match=words):
        open_image(write(tmp_path, content))
    assert descriptors() - before == set()


def _read_all(path: Path) -> None:
    with open_image_target(path) as target:
        for region in target.memory.regions[:64]:
            target.memory.read(region.start, min(region.size, 1 << 20))
        list(target.memory.resident())
        if isinstance(target, CoreTarget):
            target.registers(0)


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = core(PAGES, magic=PV)
    for cut in range(16, len(whole), 211):
        with pytest.raises(ImageFormatError):
            _read_all(write(tmp_path, whole[:cut]))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(magic=st.sampled_from([PV, HVM]), data=st.data())
def test_any_damage_is_survived(tmp_path: Path, magic: int, data: st.DataObject) -> None:
    content = bytearray(core(PAGES, magic=magic))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(8, 700) | st.integers(8, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    before = descriptors()
    with contextlib.suppress(VirtIntrospectError):
        _read_all(write(tmp_path, bytes(content)))
    assert descriptors() - before == set()
