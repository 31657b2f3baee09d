"""VMCOREINFO: the text in which a Linux kernel describes itself to dump tools.

The kernel writes it once at boot, at the start of a page, whether or not anything will ever
dump it (kernel/vmcore_info.c, ``crash_save_vmcoreinfo_init``; kernel/crash_core.c before 6.9).
It is data of the guest's: a hint to be verified, like everything else in guest memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from virtintrospect.errors import CorruptDataError, FaultError, NotFoundError
from virtintrospect.memory.base import PAGE_SIZE, PhysicalMemory

#: Longest text looked at; the kernel itself keeps to one page (VMCOREINFO_BYTES).
MAX_SIZE = 64 << 10

#: Most fields kept of one text; kernels write about a hundred.
MAX_FIELDS = 4096

_CHUNK = 4 << 20
_START = b"OSRELEASE="
_START_WORD = int.from_bytes(_START[:8], "little")
_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|[0-9]+)\Z")
_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,16}\Z")
_BUILD_ID = re.compile(r"(?:[0-9a-fA-F]{2}){1,64}\Z")


@dataclass(frozen=True)
class VmCoreInfo:
    """The fields of one VMCOREINFO text.

    The helpers raise :exc:`~virtintrospect.errors.NotFoundError` for what the text does not
    have, and :exc:`~virtintrospect.errors.CorruptDataError` for a value that is no number.

    :param fields: key to value as written, such as ``"NUMBER(phys_base)": "16777216"``.
    """

    fields: dict[str, str] = field(default_factory=dict)

    def _field(self, key: str) -> str:
        value = self.fields.get(key)
        if value is None:
            raise NotFoundError(f"the guest kernel's VMCOREINFO has no {key}")
        return value

    def _decimal(self, key: str) -> int:
        value = self._field(key)
        if len(value) > 32 or not _NUMBER.match(value):
            raise CorruptDataError(f"VMCOREINFO: {key} is no number", 0)
        return int(value, 16 if "x" in value.lower() else 10)

    def _hexadecimal(self, key: str) -> int:
        value = self._field(key)
        if not _HEX.match(value):
            raise CorruptDataError(f"VMCOREINFO: {key} is no hexadecimal number", 0)
        return int(value, 16)

    def number(self, name: str) -> int:
        """``NUMBER(name)``: decimal (perhaps negative) or, with ``0x``, hexadecimal."""
        return self._decimal(f"NUMBER({name})")

    def symbol(self, name: str) -> int:
        """``SYMBOL(name)``: virtual address, the KASLR slide included."""
        return self._hexadecimal(f"SYMBOL({name})")

    def offset(self, member: str) -> int:
        """``OFFSET(struct.member)``, in bytes."""
        return self._decimal(f"OFFSET({member})")

    def size(self, name: str) -> int:
        """``SIZE(name)``, in bytes."""
        return self._decimal(f"SIZE({name})")

    def length(self, name: str) -> int:
        """``LENGTH(name)``, in elements."""
        return self._decimal(f"LENGTH({name})")

    @property
    def release(self) -> str:
        """``OSRELEASE``: what ``uname -r`` says."""
        return self._field("OSRELEASE")

    @property
    def build_id(self) -> bytes | None:
        """``BUILD-ID`` of the kernel image (5.9 and later), or ``None``."""
        value = self.fields.get("BUILD-ID", "")
        return bytes.fromhex(value) if _BUILD_ID.match(value) else None

    @property
    def kernel_offset(self) -> int | None:
        """``KERNELOFFSET``: the KASLR slide in bytes, or ``None`` on kernels without KASLR."""
        return self._hexadecimal("KERNELOFFSET") if "KERNELOFFSET" in self.fields else None


def parse(text: bytes) -> VmCoreInfo:
    """Parse a VMCOREINFO text; it ends at its first NUL. Lines that make no sense are skipped.

    :raises CorruptDataError: the text does not begin with ``OSRELEASE=``.
    """
    if not text.startswith(_START):
        raise CorruptDataError("this is no VMCOREINFO: it does not begin with OSRELEASE=", 0)
    body = bytes(text[:MAX_SIZE]).split(b"\0", 1)[0]
    fields: dict[str, str] = {}
    for line in body.split(b"\n", MAX_FIELDS)[:MAX_FIELDS]:
        key, separator, value = line.partition(b"=")
        if separator and key and key.isascii() and value.isascii():
            fields.setdefault(key.decode("ascii"), value.decode("ascii").strip())
    return VmCoreInfo(fields)


def find(memory: PhysicalMemory) -> Iterator[tuple[int, bytes]]:
    """Look for VMCOREINFO texts in all resident memory, a page boundary at a time.

    Stale copies (of an earlier boot, of a crash kernel) are found as well: verify before use.

    :returns: guest-physical address and content of each page that begins like one.
    """
    for region in memory.resident():
        start = -(-region.start // PAGE_SIZE) * PAGE_SIZE
        end = region.end // PAGE_SIZE * PAGE_SIZE
        for paddr in range(start, end, _CHUNK):
            yield from _find_in_chunk(memory, paddr, min(_CHUNK, end - paddr))


def _find_in_chunk(memory: PhysicalMemory, paddr: int, size: int) -> Iterator[tuple[int, bytes]]:
    chunk: memoryview | bytes | None = memory.view(paddr, size)
    if chunk is None:
        try:
            chunk = memory.read(paddr, size)
        except FaultError:  # ballooned away or unplugged while we looked
            return
    view = memoryview(chunk).cast("B")
    # One word a page: through a window, the rest of guest memory is not even brought into cache.
    words = view.cast("Q")[:: PAGE_SIZE // 8].tolist()
    page = -1
    for _ in range(words.count(_START_WORD)):
        page = words.index(_START_WORD, page + 1)
        content = bytes(view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])
        if content.startswith(_START):
            yield paddr + page * PAGE_SIZE, content
