"""A guest through its gdb stub: registers that can be set, and memory as QEMU itself has it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Protocol

from virtintrospect.driver import READ_ONLY, Access, Capability
from virtintrospect.errors import UsageError
from virtintrospect.memory import PhysicalMemory, Region
from virtintrospect.memory.base import PAGE_SIZE
from virtintrospect_kvm.control import Control, ControlledTarget
from virtintrospect_kvm.gdbstub import GdbStub
from virtintrospect_kvm.layout import Layout, shadow_of
from virtintrospect_kvm.memory import KvmMemory

_log = logging.getLogger("virtintrospect.gdbstub")

GDBSTUB = "gdbstub"

#: Pages that are kept: 32 MiB. The guest stands still, so they stay true.
_KEPT = 8192
#: Reads of more bytes are not kept.
_LARGE = 16 * PAGE_SIZE


class KvmReader(Protocol):
    """A target of a guest's memory in QEMU's process."""

    @property
    def memory(self) -> KvmMemory:
        """Its memory."""

    def capabilities(self) -> frozenset[Capability]:
        """What the target can do."""

    def close(self) -> None:
        """Release everything."""


class GdbMemory(PhysicalMemory):
    """RAM, read and written by QEMU.

    Only where there is RAM: QEMU would read devices as well, which is not without effects.
    Which pages the host has got is not known here: a read of one that the guest never used may
    make QEMU allocate it. A write is one of QEMU's own: code that it has translated is
    translated anew, and a migration under way takes it along.

    :param layout: where there is RAM.
    """

    def __init__(self, stub: GdbStub, layout: Layout) -> None:
        self.regions = tuple(Region(piece.start, piece.end) for piece in layout.pieces)
        self.rom = tuple(shadow_of(layout))
        self._stub = stub
        self._pages: dict[int, bytes] = {}

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        if size > _LARGE:
            return self._stub.read(paddr, size)
        start, end = self.regions[index]
        first = max(paddr - paddr % PAGE_SIZE, start)
        data = b"".join(
            self._page(at, min(end, at - at % PAGE_SIZE + PAGE_SIZE))
            for at in range(first - first % PAGE_SIZE, paddr + size, PAGE_SIZE)
        )
        return data[paddr - first : paddr - first + size]

    def _page(self, start: int, end: int) -> bytes:
        page = self._pages.get(start)
        if page is None:
            if len(self._pages) >= _KEPT:
                self._pages.clear()
            page = self._pages[start] = self._stub.read(start, end - start)
        return page

    def _write_within(self, index: int, paddr: int, data: bytes) -> None:  # noqa: ARG002
        self.forget()
        self._stub.write(paddr, data)

    def forget(self) -> None:
        """Drop the pages that are kept."""
        self._pages.clear()


class GdbTarget(ControlledTarget):
    """A guest that stands still while its gdb stub is open, and goes on when that is closed.

    Its memory is read where it is, if that can be had: the pause is the shorter for it. It is
    always written by QEMU.

    :param name: of the guest, for messages.
    :param control: the way to its VMM; taken over, also when opening fails.
    :param reader: reads its memory, and is taken over, also when opening fails; or where it has
        RAM, which QEMU then reads for us.
    :param access: whether memory and registers may be changed.
    :raises MemoryAccessError: and its subclasses: it cannot be stopped, or has no stub for us.
    """

    transport = GDBSTUB
    #: The guest stands still, and with it its memory.
    live = False

    def __init__(
        self,
        name: str,
        control: Control,
        reader: KvmReader | Layout,
        access: Access = READ_ONLY,
    ) -> None:
        self.control = control
        self._writable = access.write
        self._pauses = 0
        with contextlib.ExitStack() as stack:
            if not isinstance(reader, Layout):
                stack.callback(reader.close)
            stack.callback(control.close)
            control.place["stub"] = True
            monitor = control.monitor
            stopped = control.pauser.pause()
            stack.callback(_tell, name, stopped)
            self._stub = GdbStub(monitor, name)
            stack.callback(self._stub.close)
            self.architecture = self._stub.description.machine
            if isinstance(reader, Layout):
                self._memory: PhysicalMemory = GdbMemory(self._stub, reader)
                self._reads: frozenset[Capability] = frozenset()
            else:
                self._memory = reader.memory
                self._reads = reader.capabilities()
                reader.memory.writer = self._stub.write
            self._memory.writable = access.write
            self._resources = stack.pop_all()

    @property
    def memory(self) -> PhysicalMemory:
        """Guest-physical memory."""
        return self._memory

    def write(self, paddr: int, data: bytes) -> None:
        """Change RAM; see :class:`~virtintrospect.driver.SupportsWrite`."""
        self._memory.write(paddr, data)

    @property
    def vcpus(self) -> int:
        """How many vCPUs have registers."""
        return self._stub.vcpus

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers of one vCPU; see :meth:`GdbStub.registers`."""
        return self._stub.registers(vcpu)

    def set_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Set registers of one vCPU; see :meth:`GdbStub.set_registers`."""
        self.require(Capability.SET_REGISTERS)
        self._stub.set_registers(vcpu, values)

    def pause(self) -> float:
        """Count: the guest stands still already."""
        self._pauses += 1
        return time.monotonic()

    def resume(self) -> None:
        """Count: the guest goes on when the target is closed.

        :raises UsageError: nothing was paused.
        """
        if not self._pauses:
            raise UsageError("the guest was not paused from here")
        self._pauses -= 1

    def capabilities(self) -> frozenset[Capability]:
        """As of every target, less what is not allowed."""
        memory = {Capability.GATHER, Capability.VIEW}
        found = super().capabilities() - memory | self._reads & memory | {Capability.REGISTERS}
        return found if self._writable else found - {Capability.SET_REGISTERS}

    def close(self) -> None:
        """Close the stub and let the guest go on; closing twice is harmless."""
        self._resources.close()


def _tell(name: str, stopped: float) -> None:
    _log.warning(
        "guest %r stood still for %.0f ms while its gdb stub was open",
        name,
        (time.monotonic() - stopped) * 1000,
    )
