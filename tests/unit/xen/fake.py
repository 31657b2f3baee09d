"""A Xen of a few domains, behind the functions that the driver calls of Xen's libraries.

What the emulated Xen of tests/xen does not give: several vCPUs, frames that are paged out or
shared, errors at will, other versions of the interface.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from virtintrospect_xen import bindings

PAGE = 4096
_DOMID_XEN = 0x7FF2
_M2P_PIECE = 512


@dataclass
class FakeDomain:
    """One domain; ``frames`` are guest frames, or machine frames of a PV guest."""

    frames: dict[int, bytes]
    hvm: bool = True
    flags: int = 0
    vcpus: int = 1
    bits: int = 64
    shared_info: int = 0
    uuid: bytes = bytes(range(16))
    #: Frame → errno, for those that Xen does not give.
    errors: dict[int, int] = field(default_factory=dict)
    context: bytes = bytes(8192)
    paused: int = 0
    pages: int | None = None
    #: Pages that it may have; as many as it has, where that is not said.
    max_pages: int | None = None
    #: Pages that come on demand, and those kept for that.
    on_demand: tuple[int, int] = (0, 0)
    #: errno of every domctl.
    refuse: int = 0


class FakeXen:
    """Answers as Xen 4.17 would; ``version`` is that of domctl."""

    def __init__(self, domains: dict[int, FakeDomain], version: int = 0x15) -> None:
        self.domains = domains
        self.version = version
        #: Machine frame → guest frame, of the whole host.
        self.m2p: dict[int, int] = {}
        self.store: dict[str, bytes] = {}
        self.refuse = 0
        self.map_calls: list[int] = []
        self.opened = 0
        #: Frames that domain 0 has room for, by those that :attr:`window` has mapped.
        self.room = 1 << 40
        self.window: Any = None

    def _mapped(self) -> int:
        return sum(self.window.present) if self.window is not None else 0

    @contextmanager
    def installed(self) -> Iterator[FakeXen]:
        """Stand in for the libraries while the block runs."""
        with (
            mock.patch.object(bindings, "foreign_memory", return_value=self),
            mock.patch.object(bindings, "hypercalls", return_value=self),
        ):
            yield self

    # -- libxenforeignmemory ----------------------------------------------------------------

    def xenforeignmemory_open(self, _logger: object, _flags: int) -> int:
        return self._open()

    def xenforeignmemory_close(self, _handle: int) -> int:
        self.opened -= 1
        return 0

    def xenforeignmemory_restrict(self, _handle: int, _domid: int) -> int:
        return 0

    def xenforeignmemory_map2(
        self, _handle: int, domid: int, address: int | None, protection: int, flags: int,
        pages: int, frames: int, errors: int,
    ) -> int | None:  # fmt: skip
        self.map_calls.append(pages)
        if self._mapped() + pages > self.room:
            ctypes.set_errno(errno.ENOMEM)
            return None
        wanted = struct.unpack(f"<{pages}Q", ctypes.string_at(frames, 8 * pages))
        if domid != _DOMID_XEN and domid not in self.domains:
            ctypes.set_errno(errno.ESRCH)
            return None
        private = flags & ~mmap.MAP_SHARED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        found: int = bindings.libc().mmap(
            address, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, private, -1, 0
        )
        for index, frame in enumerate(wanted):
            content, error = self._frame(domid, frame, protection)
            struct.pack_into("<i", (ctypes.c_char * 4).from_address(errors + 4 * index), 0, -error)
            ctypes.memmove(found + index * PAGE, content, PAGE)
        return found

    def _frame(self, domid: int, frame: int, protection: int) -> tuple[bytes, int]:
        if domid == _DOMID_XEN:
            first = frame * PAGE // 8
            return struct.pack(
                "<512Q", *(self.m2p.get(first + n, (1 << 64) - 1) for n in range(512))
            ), 0
        domain = self.domains[domid]
        error = domain.errors.get(frame, 0)
        if error in (errno.EBUSY, errno.ENOMEM) and not protection & mmap.PROT_WRITE:
            error = 0
        if not error and frame not in domain.frames:
            error = errno.EINVAL if domain.hvm else errno.EPERM
        return (bytes(PAGE), error) if error else (domain.frames[frame], 0)

    # -- libxencall -------------------------------------------------------------------------

    def xencall_open(self, _logger: object, _flags: int) -> int:
        return self._open()

    def xencall_close(self, _handle: int) -> int:
        self.opened -= 1
        return 0

    def xencall_alloc_buffer_pages(self, _handle: int, pages: int) -> int:
        self._buffer = ctypes.create_string_buffer(pages * PAGE)
        return ctypes.addressof(self._buffer)

    def xencall_free_buffer_pages(self, _handle: int, _address: int, _pages: int) -> None:
        pass

    def xencall2L(self, _handle: int, _call: int, command: int, buffer: int) -> int:  # noqa: N802
        if command == 14:
            (domid,) = struct.unpack("<H", ctypes.string_at(buffer, 2))
            return max(self.domains[domid].frames)
        if command == 17:
            (domid,) = struct.unpack("<32xH", ctypes.string_at(buffer, 34))
            awaited, kept = self.domains[domid].on_demand
            ctypes.memmove(buffer + 16, struct.pack("<QQ", kept, awaited), 16)
            return 0
        room, listed = struct.unpack("<I4xQ", ctypes.string_at(buffer, 16))
        pieces = (max(self.m2p, default=0) >> 18) + 1
        assert pieces <= room
        starts = struct.pack(f"<{pieces}Q", *(n * _M2P_PIECE for n in range(pieces)))
        ctypes.memmove(listed, starts, len(starts))
        ctypes.memmove(buffer + 16, struct.pack("<I", pieces), 4)
        return 0

    def xencall1(self, _handle: int, _call: int, buffer: int) -> int:
        command, version, domid = struct.unpack("<IIH", ctypes.string_at(buffer, 10))
        error = self._domctl(command, version, domid, buffer)
        ctypes.set_errno(error)
        return -1 if error else 0

    def _domctl(self, command: int, version: int, domid: int, buffer: int) -> int:
        if self.refuse:
            return self.refuse
        if version != self.version:
            return errno.EACCES
        domain = self.domains.get(domid)
        if domain is None:
            return errno.ESRCH
        if domain.refuse:
            return domain.refuse
        if command == 5:
            self._info(domid, domain, buffer)
        elif command == 3:
            domain.paused += 1
        elif command == 4:
            domain.paused -= 1
        elif command == 36:
            ctypes.memmove(buffer + 16, struct.pack("<I", domain.bits), 4)
        else:
            return self._context(command, domain, buffer)
        return 0

    def _info(self, domid: int, domain: FakeDomain, buffer: int) -> None:
        pages = len(domain.frames) if domain.pages is None else domain.pages
        most = pages if domain.max_pages is None else domain.max_pages
        flags = domain.flags | (2 if domain.hvm else 0)
        packed = struct.pack(
            "<H2xI7QIII16s", domid, flags, pages, most, 0, 0, 0, domain.shared_info, 0,
            domain.vcpus, domain.vcpus - 1, 0, domain.uuid,
        )  # fmt: skip
        ctypes.memmove(buffer + 16, packed, len(packed))

    def _context(self, command: int, domain: FakeDomain, buffer: int) -> int:
        if command == 55:
            _, vcpu, _, where = struct.unpack("<IIQQ", ctypes.string_at(buffer + 16, 24))
        else:
            vcpu, where = struct.unpack("<I4xQ", ctypes.string_at(buffer + 16, 16))
        if vcpu >= domain.vcpus:
            return errno.EINVAL
        if command == 12:
            domain.context = ctypes.string_at(where, 5168).ljust(8192, b"\0")
        else:
            content = bytearray(domain.context)
            struct.pack_into("<Q", content, 640, 0x1000 + vcpu)  # rip of an HVM guest
            ctypes.memmove(where, bytes(content), 8192)
        return 0

    def _open(self) -> int:
        self.opened += 1
        return 1


def pv_domain(frames: int, first_machine: int, holes: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """A PV guest of some frames, and the M2P: machine frames in falling order.

    Its P2M lies at a virtual address that its own page tables map, as Linux does it.
    """
    machine = {
        guest: first_machine + frames - guest for guest in range(frames) if guest not in holes
    }
    list_pages = -(-frames // 512)
    tables = first_machine + frames + 1
    level4, level3, level2, level1, listed, shared = (tables + n for n in range(6))
    content: dict[int, bytes] = {m: struct.pack("<512Q", *[g] * 512) for g, m in machine.items()}
    vaddr = 0xFFFF_C900_0000_0000

    def table(entries: dict[int, int]) -> bytes:
        return struct.pack("<512Q", *(entries.get(n, 0) for n in range(512)))

    content[level4] = table({(vaddr >> 39) & 511: level3 << 12 | 0x67})
    content[level3] = table({(vaddr >> 30) & 511: level2 << 12 | 0x67})
    content[level2] = table({(vaddr >> 21) & 511: level1 << 12 | 0x67})
    where = [listed if n == 0 else shared + n for n in range(list_pages)]
    content[level1] = table({n: frame << 12 | 0x67 for n, frame in enumerate(where)})
    for number, frame in enumerate(where):
        guests = range(number * 512, number * 512 + 512)
        content[frame] = struct.pack("<512Q", *(machine.get(g, (1 << 64) - 1) for g in guests))
    info = bytearray(PAGE)
    struct.pack_into("<6Q", info, 3088, frames, 0, 0, level4 << 12, vaddr, 2)
    content[shared] = bytes(info)
    domain = FakeDomain(content, hvm=False, shared_info=shared)
    return domain, {m: g for g, m in machine.items()}
