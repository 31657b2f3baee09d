"""What a guest's memory says: page tables, and the log of its kernel."""

from __future__ import annotations

import contextlib
import struct
from itertools import islice

import numpy as np

from tests.fuzz.memory import ImageTarget
from tests.fuzz.parsers.target import Target
from tests.unit.images import PAGE, BuiltMemory, PageTables
from tests.unit.test_printk import CALLER, LOG, LOG_SIZE, OldLog
from virtintrospect.arch import X86_64_4LEVEL, X86_64_5LEVEL, PagingMode, walk
from virtintrospect.arch.arm64 import aarch64
from virtintrospect.arch.paging import translate_many, translator
from virtintrospect.arch.riscv import SV39, SV48, SV57
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux import osrelease, printk, utmp
from virtintrospect.guests.linux.machine import MACHINES
from virtintrospect.space import AddressSpace

_MODES: tuple[PagingMode, ...] = (
    X86_64_4LEVEL, X86_64_5LEVEL, aarch64(12, 48), aarch64(16, 48), aarch64(14, 47), SV39, SV48,
    SV57,
)  # fmt: skip
_TABLES = 1 << 18
_KERNEL = 0xFFFF_FFFF_8000_0000
_ADDRESSES = (
    0, 0x40_0000, 0x7FFF_FFFF_F000, _KERNEL, _KERNEL + (1 << 21) + 17, 0xFFFF_8880_0000_0000,
    (1 << 64) - 1, 1 << 62, 0xFF11_0000_0000_0000,
)  # fmt: skip


def _table_seeds() -> list[bytes]:
    found = []
    for mode in (X86_64_4LEVEL, X86_64_5LEVEL):
        tables = PageTables(BuiltMemory(_TABLES), mode, 0x1000)
        for page in range(8):
            tables.map(_KERNEL + page * (2 << 20), page * (2 << 20), size=2 << 20)
            tables.map(0x40_0000 + page * PAGE, page * PAGE)
            tables.map(0xFFFF_8880_0000_0000 + page * (1 << 30), page << 30, size=1 << 30)
        found.append(bytes(tables.memory.data[: 24 * PAGE]))
    # A table that is its own at every level, and one whose entries lie beyond memory.
    found.append(bytes(PAGE) + struct.pack("<Q", 0x1067) * 512)
    found.append(bytes(PAGE) + struct.pack("<Q", 0xF_FFFF_FFFF_F067) * 512)
    return found


def _tables(data: bytes) -> None:
    memory = BuiltMemory(_TABLES)
    memory.write(0, data[:_TABLES])
    addresses = np.array(_ADDRESSES, dtype=np.uint64)
    for mode in _MODES:
        space = AddressSpace(memory, mode, 0x1000)
        translate = translator(memory.read_u64, mode)
        for vaddr in _ADDRESSES:
            for ask in (
                lambda vaddr=vaddr, mode=mode: walk(memory, mode, 0x1000, vaddr),
                lambda vaddr=vaddr, translate=translate: translate(0x1000, vaddr),
                lambda vaddr=vaddr, space=space: space.read(vaddr, 8200),
                lambda vaddr=vaddr, space=space: space.read_available(vaddr, 64 << 10),
                lambda vaddr=vaddr, space=space: space.string(vaddr),
            ):
                with contextlib.suppress(VirtIntrospectError):
                    ask()
        with contextlib.suppress(VirtIntrospectError):
            translate_many(memory, mode, 0x1000, addresses)
        space.gather(list(_ADDRESSES), 64, [])


def _image(data: bytes) -> None:
    """The search for a kernel, of each architecture, in memory that is full of page tables."""
    memory = BuiltMemory(1 << 20)
    memory.write(0, data[: 1 << 20])
    target = ImageTarget(memory, live=False)
    for machine in MACHINES:
        for search in (machine.quick, machine.thorough):
            with contextlib.suppress(VirtIntrospectError):
                for found in islice(search(target), 16):
                    machine.read_only_data(memory, found)


def _log_seeds() -> list[bytes]:
    log = OldLog()
    for number in range(40):
        log.put(b"message %d of the kernel" % number, extra=b"SUBSYSTEM=pci", level=number % 8)
    head = struct.pack("<IIIQQ", 0, log.end, LOG_SIZE, 0, 40)
    return [head + bytes(log.memory.data[LOG : LOG + 4096])]


def _log(data: bytes) -> None:
    first, end, size, start, following = struct.unpack("<IIIQQ", data[:28].ljust(28, b"\0"))
    for structs in (None, CALLER):
        log = OldLog(structs)
        log.memory.write(LOG, data[28 : 28 + LOG_SIZE])
        guest = log.guest(first, end, size=size)
        for symbol, value in (("log_first_seq", start), ("log_next_seq", following)):
            log.kernel.number(symbol, value)
        guest = log.guest(first, end, size=size)
        with contextlib.suppress(VirtIntrospectError):
            printk.records(guest)


def _files(data: bytes) -> None:
    list(utmp.records([(0, data)]))
    osrelease.parse(data)


TARGETS = [
    Target("page tables", _table_seeds, _tables, 25),
    Target("search for a kernel", _table_seeds, _image, 60),
    Target("printk", _log_seeds, _log, 40),
]
