"""What is asked of Xen's monitor, and how a guest is left, beside a monitor made of Python.

What the emulated Xen of tests/xen does not report: breakpoints, single steps, and vCPUs that wait
for room.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Self
from unittest import mock

import pytest
from virtintrospect_xen import events, ring
from virtintrospect_xen.events import Watch

from tests.unit.xen.test_ring import Xen
from virtintrospect.errors import NoSuchTargetError, UnsupportedError, UsageError
from virtintrospect.model import (
    Breakpoint,
    EventKind,
    MemoryAccess,
    RegisterWrite,
    SingleStep,
)
from virtintrospect.model.event import Trigger

_DOMID, _RING_FRAME, _PLACE = 7, 0xFEFF9, 0x2345
_RIP = 0xFFFFFFFF81000000


class _Lab:
    """Hypervisor, monitor, mapper and bell at once; remembers what was asked."""

    domid = _DOMID

    def __init__(self) -> None:
        self.xen = Xen()
        self.asked: list[object] = []
        self.late = 0
        self.gone = False
        self.can = 0b1101
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.memory = bytearray(range(256)) * 64

    def ring(self, vcpu: int, **what: object) -> None:
        """Xen reports something."""
        self.xen.put(vcpu, **what)  # type: ignore[arg-type]
        os.eventfd_write(self.bell, 1)

    # -- hypervisor
    def info(self, _domid: int) -> SimpleNamespace:
        return SimpleNamespace(highest_vcpu=1)

    def pause(self, _domid: int) -> None:
        if self.gone:
            raise NoSuchTargetError("Xen has no domain 7")
        self.asked.append("pause")

    def unpause(self, _domid: int) -> None:
        self.asked.append("unpause")
        for vcpu in range(self.late):  # they had waited for room
            self.ring(vcpu)
        self.late = 0

    # -- monitor
    def capabilities(self) -> int:
        return self.can

    def frame(self) -> int:
        return _RING_FRAME

    def enable(self) -> int:
        self.asked.append("enable")
        return 3

    def disable(self) -> None:
        self.asked.append(("disable", self.xen.answers))

    def take_away(self, frame: int) -> None:
        assert frame == _RING_FRAME

    def event(self, event: int, *, on: bool) -> None:
        self.asked.append(("event", event, on))

    def register(self, index: int, *, on: bool) -> None:
        self.asked.append(("register", index, on))

    def step(self, vcpu: int, *, on: bool) -> None:
        self.asked.append(("step", vcpu, on))

    def access(self, _frame: int, _allowed: int) -> None:
        raise UnsupportedError("not on this processor")

    def inject_breakpoint(self, vcpu: int) -> None:
        self.asked.append(("inject", vcpu))

    # -- mapper
    def map(self, _frames: object, *, writable: bool) -> tuple[int, list[int]]:
        assert writable
        page = (ctypes.c_char * 4096).from_buffer(self.xen.memory)
        return ctypes.addressof(page), [0]

    def unmap(self, _address: int, _pages: int) -> None:
        self.asked.append("unmap")

    # -- bell
    def fileno(self) -> int:
        return self.bell

    def quiet(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    def notify(self) -> None:
        self.asked.append("notify")

    def close(self) -> None:
        self.asked.append("close")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- memory
    def read(self, paddr: int, size: int) -> bytes:
        return bytes(self.memory[paddr : paddr + size])

    def write(self, paddr: int, data: bytes) -> None:
        self.memory[paddr : paddr + len(data)] = data


@pytest.fixture
def lab() -> Iterator[_Lab]:
    lab = _Lab()
    mapper = mock.Mock(return_value=lab, unmap=lab.unmap)
    with mock.patch.multiple(
        events, Monitor=mock.Mock(return_value=lab), Mapper=mapper,
        EventChannel=mock.Mock(return_value=lab),
    ):  # fmt: skip
        yield lab
    os.close(lab.bell)


@contextmanager
def _watch(lab: _Lab, *triggers: Trigger) -> Iterator[Watch]:
    with Watch(lab, _DOMID, lab, triggers) as watch:  # type: ignore[arg-type]
        yield watch


def test_breakpoint(lab: _Lab) -> None:
    """Ours is reported, and what stood there is executed; the guest's own is the guest's."""
    before = bytes(lab.memory)
    with _watch(lab, Breakpoint(_PLACE)) as watch:
        assert lab.memory[_PLACE] == 0xCC
        frame = struct.pack("<Q", _PLACE >> 12)
        rip = _RIP & ~0xFFF | _PLACE & 0xFFF
        lab.ring(0, reason=ring.SOFTWARE_BREAKPOINT, detail=frame, rip=rip)
        lab.ring(1, reason=ring.SOFTWARE_BREAKPOINT, detail=frame, rip=rip + 16)
        (event,) = watch.take()
        assert (event.kind, event.vcpu) == (EventKind.BREAKPOINT, 0)
        assert (event.paddr, event.vaddr) == (_PLACE, rip)
        head, instruction = lab.xen.answer(0)
        flags = ring.VCPU_PAUSED | ring.EMULATE | ring.SET_INSTRUCTION
        assert struct.unpack_from("<I", head, 4)[0] == flags
        assert instruction == before[_PLACE : _PLACE + 16]
        assert ("inject", 1) in lab.asked
        assert watch.take() == []
    assert bytes(lab.memory) == before


def test_single_steps(lab: _Lab) -> None:
    """One vCPU's are reported, with their place where Xen finds it; at the end it steps no more."""
    with _watch(lab, SingleStep(1)) as watch:
        assert lab.asked[-2:] == [("event", 2, True), ("step", 1, True)]
        rip = _RIP & ~0xFFF | 0x345
        lab.ring(1, reason=ring.SINGLESTEP, detail=struct.pack("<Q", 2), rip=rip)
        lab.ring(1, reason=ring.SINGLESTEP, detail=b"\xff" * 8, rip=rip + 3)
        lab.ring(0, reason=ring.SINGLESTEP, detail=struct.pack("<Q", 2), rip=rip)
        first, second = watch.take()
        assert (first.kind, first.vcpu, first.vaddr, first.paddr) == ("step", 1, rip, 0x2345)
        assert (second.vaddr, second.paddr) == (rip + 3, None)
        # Each waits, and goes on by the answer alone.
        flags = [struct.unpack_from("<4I", lab.xen.answer(n)[0]) for n in range(3)]
        assert flags == [(7, 1, 7, 1), (7, 1, 7, 1), (7, 1, 7, 0)]
        lab.asked.clear()
    assert lab.asked[:4] == ["pause", ("step", 1, False), ("event", 2, False), "unpause"]


def test_single_steps_of_several(lab: _Lab) -> None:
    """Xen is told once that steps are wanted, and of each vCPU."""
    with _watch(lab, SingleStep(0), SingleStep(1)):
        pass
    told = [what for what in lab.asked if isinstance(what, tuple) and what[0] != "disable"]
    assert told == [
        ("event", 2, True), ("step", 0, True), ("step", 1, True),
        ("step", 1, False), ("step", 0, False), ("event", 2, False),
    ]  # fmt: skip


def test_single_steps_that_cannot_be(lab: _Lab) -> None:
    for vcpu in (2, -1):
        with pytest.raises(UsageError, match="has no vCPU"), _watch(lab, SingleStep(vcpu)):
            pass
    lab.can = 0b1001  # AMD's
    with pytest.raises(UnsupportedError, match="on this processor"), _watch(lab, SingleStep(0)):
        pass
    assert lab.asked == []


def test_who_waits_for_room_gets_it_before_the_ring_goes(lab: _Lab) -> None:
    with _watch(lab, RegisterWrite("cr4")) as watch:
        lab.ring(0, detail=struct.pack("<I4xQQ", 2, 0x20, 0))
        (event,) = watch.take()
        assert (event.register, event.value, event.previous) == ("cr4", 0x20, 0)
        lab.ring(0)
        lab.late = 5
        lab.asked.clear()
    assert lab.asked == [
        "pause", ("register", 2, False), "notify", "unpause", "notify", "close", ("disable", 7),
        "unmap", "close",
    ]  # fmt: skip


def test_what_xen_refuses_leaves_nothing(lab: _Lab) -> None:
    before = bytes(lab.memory)
    with pytest.raises(UnsupportedError, match="not on this processor"):
        Watch(lab, _DOMID, lab, [Breakpoint(_PLACE), MemoryAccess(_PLACE, "w")])  # type: ignore[arg-type]
    assert bytes(lab.memory) == before
    assert lab.asked[-4:] == ["close", ("disable", 0), "unmap", "close"]
    for wrong in (RegisterWrite("cr8"), MemoryAccess(_PLACE, "q")):
        lab.asked.clear()
        with pytest.raises(UsageError):
            Watch(lab, _DOMID, lab, [wrong])  # type: ignore[arg-type]
        assert lab.asked == []


def test_a_guest_that_is_gone_holds_nobody_up(lab: _Lab) -> None:
    with _watch(lab, RegisterWrite()):
        lab.gone = True
    assert lab.asked[-2:] == ["unmap", "close"]
