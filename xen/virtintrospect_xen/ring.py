"""The ring over which Xen reports what a guest's vCPUs did, in one page that both sides share.

xen/include/public/io/ring.h has its head, xen/include/public/vm_event.h what is in it. Xen puts
requests, we put a response for each, which also frees its place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from virtintrospect.errors import MemoryAccessError

#: VM_EVENT_INTERFACE_VERSION of Xen 4.13 to 4.19, whose struct vm_event_st is so long.
VERSION, SIZE = 7, 400
#: Where struct vm_event_sring has its entries; how many, a power of two.
_ENTRIES_AT, _COUNT = 64, 8
_REQ_PROD, _REQ_EVENT, _RSP_PROD = 0, 4, 8
#: version, flags, reason, vCPU, altp2m's index.
_HEAD = struct.Struct("<4IH6x")
_UNION_AT, _DATA_AT = 24, 56
#: In struct vm_event_regs_x86.
_RIP_AT, _CR3_AT = _DATA_AT + 152, _DATA_AT + 176
_U64 = struct.Struct("<Q")
#: VM_EVENT_REASON_*.
MEM_ACCESS, WRITE_CTRLREG, SOFTWARE_BREAKPOINT, SINGLESTEP = 1, 4, 6, 7
#: VM_EVENT_FLAG_*.
VCPU_PAUSED, EMULATE, SET_INSTRUCTION = 0x1, 0x4, 0x200


@dataclass(frozen=True, slots=True)
class Request:
    """One of Xen's reports."""

    flags: int
    reason: int
    vcpu: int
    altp2m: int
    #: What depends on the reason (the first union of struct vm_event_st).
    detail: bytes
    rip: int
    cr3: int


class Ring:
    """Our end of the ring.

    :param page: the shared page, writable; Xen has cleared it.
    """

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._taken = self._answered = 0

    def take(self) -> Iterator[Request]:
        """What Xen has put there and nobody has taken yet; no more than fits the ring.

        :raises MemoryAccessError: it speaks another version.
        """
        for _ in range(_COUNT):
            if self._number(_REQ_PROD) == self._taken:
                break
            entry = self._entry(self._taken)
            version, flags, reason, vcpu, altp2m = _HEAD.unpack_from(entry)
            if version != VERSION:
                raise MemoryAccessError(
                    f"Xen reports events in version {version}, known is {VERSION}",
                    hint="report it, with what `xl info` says",
                )
            self._taken = (self._taken + 1) & 0xFFFFFFFF
            # Xen speaks up at the next one.
            struct.pack_into("<I", self._page, _REQ_EVENT, (self._taken + 1) & 0xFFFFFFFF)
            (rip,), (cr3,) = _U64.unpack_from(entry, _RIP_AT), _U64.unpack_from(entry, _CR3_AT)
            detail = bytes(entry[_UNION_AT:_DATA_AT])
            yield Request(flags, reason, vcpu, altp2m, detail, rip, cr3)

    def answer(self, request: Request, flags: int = 0, instruction: bytes = b"") -> None:
        """Let the vCPU go on.

        :param flags: more VM_EVENT_FLAG_* than whether it waits.
        :param instruction: what it is to execute instead of what is in its memory
            (:data:`SET_INSTRUCTION`).
        """
        entry = self._entry(self._answered)
        entry[:] = bytes(SIZE)
        flags |= request.flags & VCPU_PAUSED
        _HEAD.pack_into(entry, 0, VERSION, flags, request.reason, request.vcpu, request.altp2m)
        entry[_UNION_AT:_DATA_AT] = request.detail
        entry[_DATA_AT : _DATA_AT + len(instruction)] = instruction
        self._answered = (self._answered + 1) & 0xFFFFFFFF
        struct.pack_into("<I", self._page, _RSP_PROD, self._answered)

    def _number(self, offset: int) -> int:
        number: int = struct.unpack_from("<I", self._page, offset)[0]
        return number

    def _entry(self, number: int) -> memoryview:
        start = _ENTRIES_AT + (number % _COUNT) * SIZE
        return self._page[start : start + SIZE]
