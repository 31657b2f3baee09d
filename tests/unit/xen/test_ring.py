"""The ring of events, filled as Xen fills it (io/ring.h, vm_event.h)."""

from __future__ import annotations

import struct

import pytest
from virtintrospect_xen import ring

from virtintrospect.errors import MemoryAccessError

_PAGE, _ENTRIES, _SIZE, _COUNT = 4096, 64, 400, 8


class Xen:
    """The other end."""

    def __init__(self) -> None:
        self.memory = bytearray(_PAGE)
        self.page = memoryview(self.memory)
        self.put_so_far = 0

    def put(
        self, vcpu: int, *, version: int = 7, flags: int = 1, reason: int = 4,
        detail: bytes = b"", rip: int = 0,
    ) -> None:  # fmt: skip
        entry = struct.pack("<4IH6x", version, flags, reason, vcpu, 0) + detail.ljust(32, b"\0")
        registers = bytearray(344)
        struct.pack_into("<Q", registers, 152, rip or 0xFFFFFFFF81000000 + vcpu)
        struct.pack_into("<Q", registers, 176, 0x1000 * vcpu)
        start = _ENTRIES + self.put_so_far % _COUNT * _SIZE
        self.page[start : start + _SIZE] = entry + bytes(registers)
        self.put_so_far += 1
        struct.pack_into("<I", self.page, 0, self.put_so_far & 0xFFFFFFFF)

    @property
    def answers(self) -> int:
        number: int = struct.unpack_from("<I", self.page, 8)[0]
        return number

    def answer(self, number: int) -> tuple[bytes, bytes]:
        start = _ENTRIES + number % _COUNT * _SIZE
        return bytes(self.page[start : start + 56]), bytes(self.page[start + 56 : start + 72])


def test_requests_are_taken_once_and_answered() -> None:
    xen = Xen()
    ours = ring.Ring(xen.page)
    assert list(ours.take()) == []
    for turn in range(5):  # round and round
        for vcpu in range(6):
            xen.put(vcpu, detail=struct.pack("<QQ", turn, vcpu))
        taken = list(ours.take())
        assert [request.vcpu for request in taken] == list(range(6))
        assert [request.cr3 for request in taken] == [0x1000 * n for n in range(6)]
        assert taken[3].rip == 0xFFFFFFFF81000003
        assert struct.unpack_from("<QQ", taken[5].detail) == (turn, 5)
        assert list(ours.take()) == []
        for request in taken:
            ours.answer(request)
        assert xen.answers == 6 * (turn + 1)
        # Xen rings at the next one.
        assert struct.unpack_from("<I", xen.page, 4)[0] == xen.put_so_far + 1


def test_what_an_answer_says() -> None:
    xen = Xen()
    ours = ring.Ring(xen.page)
    xen.put(3, detail=b"detail")
    xen.put(2, flags=0)
    first, second = ours.take()
    ours.answer(first, ring.EMULATE | ring.SET_INSTRUCTION, b"\x55" * 16)
    head, instruction = xen.answer(0)
    assert struct.unpack_from("<4I", head) == (7, 0x1 | 0x4 | 0x200, 4, 3)
    assert head[24:30] == b"detail"
    assert instruction == b"\x55" * 16
    ours.answer(second)
    assert struct.unpack_from("<4I", xen.answer(1)[0]) == (7, 0, 4, 2)  # it did not wait


def test_a_ring_of_another_version() -> None:
    xen = Xen()
    xen.put(0, version=8)
    with pytest.raises(MemoryAccessError, match="version 8"):
        list(ring.Ring(xen.page).take())


def test_a_ring_that_claims_too_much() -> None:
    """No more than fits is taken at a time, whatever its head says."""
    xen = Xen()
    for _ in range(8):
        xen.put(1)
    struct.pack_into("<I", xen.page, 0, 0xFFFFFFF0)
    assert len(list(ring.Ring(xen.page).take())) == 8
