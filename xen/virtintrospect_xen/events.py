"""What a guest's vCPUs do, by Xen's monitor (vm_event): HVM and PVH guests.

libxenctrl's part of it is made of hypercalls that are used here as they are: the ring's page is
given to Xen by XEN_DOMCTL_vm_event_op, events are chosen by XEN_DOMCTL_monitor_op, access to
pages by XENMEM_access_op (xen/include/public/domctl.h, memory.h). A vCPU whose event nobody
answers stands still; so this runs in a process of its own (``watching.py``), which ends it when
the one that asked for it ends, even when that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import struct
from collections.abc import Iterator, Sequence
from time import time
from typing import Self

from virtintrospect.errors import (
    MemoryAccessError,
    NoSuchTargetError,
    TargetGoneError,
    UnsupportedError,
    UsageError,
    VirtIntrospectError,
)
from virtintrospect.model.event import (
    Breakpoint,
    Event,
    EventKind,
    MemoryAccess,
    RegisterWrite,
    SingleStep,
    Trigger,
)
from virtintrospect_xen import bindings, ring
from virtintrospect_xen.calls import Hypervisor
from virtintrospect_xen.memory import XenMemory
from virtintrospect_xen.monitor import Monitor
from virtintrospect_xen.window import Mapper

_PAGE = 4096
#: VM_EVENT_X86_* of struct vm_event_write_ctrlreg.
_REGISTERS = {"cr0": 0, "cr3": 1, "cr4": 2, "xcr0": 3}
#: XEN_DOMCTL_MONITOR_EVENT_*.
_WRITE_CTRLREG, _SINGLESTEP, _SOFTWARE_BREAKPOINT = 0, 2, 3
#: xenmem_access_t of what is still allowed. Nested paging has no page that can be written or
#: executed and not read: such a one is absent, and what nobody asked for is left out.
_ALLOWED = {frozenset("w"): 5, frozenset("x"): 3, frozenset("wx"): 1}
_NOTHING, _UNRESTRICTED = 0, 7
#: MEM_ACCESS_*, in the order of their bits.
_ACCESS, _GLA_VALID = "rwx", 1 << 3
#: An instruction of x86 is at most so long, and Xen wants so much of it.
_INSTRUCTION = 16
_INT3 = b"\xcc"
#: Where Xen has found no frame (gfn_of_rip in hvm/monitor.c).
_INVALID_GFN = (1 << 64) - 1
#: Seconds without an event after which no vCPU has one to put any more, and how often to look.
_SILENCE, _ROUNDS = 0.05, 100
_AT_AN_INSTRUCTION = {
    ring.SOFTWARE_BREAKPOINT: EventKind.BREAKPOINT,
    ring.SINGLESTEP: EventKind.STEP,
}
_NAMES = {number: name for name, number in _REGISTERS.items()}


class Watch:
    """Events of one guest, until it is closed. A context manager.

    :param memory: of the guest, opened for writing.
    :raises UnsupportedError: this Xen does not report such an event on this processor.
    :raises MemoryAccessError: Xen refuses, or somebody else watches this guest.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        domid: int,
        memory: XenMemory,
        triggers: Sequence[Trigger],
    ) -> None:
        self._xen, self._monitor, self._memory = hypervisor, Monitor(hypervisor, domid), memory
        #: Frame → what is asked for.
        self._watched: dict[int, set[str]] = {}
        #: First bytes of each breakpoint's place, before it was one.
        self._original: dict[int, bytes] = {}
        self._stepped: set[int] = set()
        self._resources, self._started = contextlib.ExitStack(), contextlib.ExitStack()
        self._require(triggers)
        try:
            with self._paused():
                self._open_ring(self._resources)
            self._started.callback(self.take)
            for trigger in triggers:
                self._start(trigger, self._started)
        except BaseException:
            self.close()
            raise

    def _require(self, triggers: Sequence[Trigger]) -> None:
        can = self._monitor.capabilities()
        for trigger in triggers:
            if isinstance(trigger, RegisterWrite):
                if trigger.register not in _REGISTERS:
                    raise UsageError(
                        f"writes of {trigger.register} are not reported",
                        hint=f"those of {', '.join(_REGISTERS)} are",
                    )
                event = _WRITE_CTRLREG
            elif isinstance(trigger, Breakpoint):
                event = _SOFTWARE_BREAKPOINT
            elif isinstance(trigger, SingleStep):
                highest = self._xen.info(self._monitor.domid).highest_vcpu
                if not 0 <= trigger.vcpu <= highest:
                    raise UsageError(
                        f"the guest has no vCPU {trigger.vcpu}", hint=f"0 to {highest} are there"
                    )
                if not can >> _SINGLESTEP & 1:
                    raise UnsupportedError(
                        "Xen does not step through instructions on this processor",
                        hint="it does on Intel's, of HVM and PVH guests",
                    )
                continue
            else:
                if not trigger.access or not set(trigger.access) <= set(_ACCESS):
                    raise UsageError(f"{trigger.access!r} is no kind of access", hint="use r, w, x")
                continue
            if not can >> event & 1:
                raise UnsupportedError(
                    "Xen does not report this event of this guest",
                    hint="it does of HVM and PVH guests with hardware-assisted paging",
                )

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        self._xen.pause(self._monitor.domid)
        try:
            yield
        finally:
            with contextlib.suppress(VirtIntrospectError):  # the domain is gone
                self._xen.unpause(self._monitor.domid)

    def _open_ring(self, stack: contextlib.ExitStack) -> None:
        """Give Xen a page for the ring, and the guest no way to it."""
        monitor = self._monitor
        frame, mapper = monitor.frame(), Mapper(monitor.domid)
        stack.callback(mapper.close)
        address, errors = mapper.map([frame], writable=True)
        if any(errors):
            Mapper.unmap(address, 1)
            monitor.populate(frame)
            address, errors = mapper.map([frame], writable=True)
        stack.callback(Mapper.unmap, address, 1)
        if any(errors):
            raise MemoryAccessError("Xen gives no page for events")
        ctypes.memset(address, 0, _PAGE)
        remote = monitor.enable()
        stack.callback(monitor.disable)
        monitor.take_away(frame)
        self._port = stack.enter_context(EventChannel(monitor.domid, remote))
        page = memoryview((ctypes.c_char * _PAGE).from_address(address)).cast("B")
        self._ring = ring.Ring(page)
        stack.callback(self._drain)

    def _start(self, trigger: Trigger, stack: contextlib.ExitStack) -> None:
        """Have Xen report it, from now until the stack ends."""
        monitor = self._monitor
        if isinstance(trigger, RegisterWrite):
            index = _REGISTERS[trigger.register]
            monitor.register(index, on=True)
            stack.callback(monitor.register, index, on=False)
        elif isinstance(trigger, MemoryAccess):
            frame = trigger.paddr // _PAGE
            wanted = self._watched.setdefault(frame, set())
            wanted.update(trigger.access)
            monitor.access(frame, _ALLOWED.get(frozenset(wanted), _NOTHING))
            stack.callback(monitor.access, frame, _UNRESTRICTED)
        elif isinstance(trigger, SingleStep):
            if not self._stepped:
                monitor.event(_SINGLESTEP, on=True)
                stack.callback(monitor.event, _SINGLESTEP, on=False)
            self._stepped.add(trigger.vcpu)
            stack.callback(monitor.step, trigger.vcpu, on=False)
            monitor.step(trigger.vcpu, on=True)
        else:
            if not self._original:
                monitor.event(_SOFTWARE_BREAKPOINT, on=True)
                stack.callback(monitor.event, _SOFTWARE_BREAKPOINT, on=False)
            original = self._memory.read(trigger.paddr, _INSTRUCTION)
            self._original[trigger.paddr] = original
            stack.callback(self._memory.write, trigger.paddr, original[:1])
            self._memory.write(trigger.paddr, _INT3)

    def fileno(self) -> int:
        """A descriptor that becomes readable when Xen has rung."""
        return self._port.fileno()

    def take(self) -> list[Event]:
        """Events that have happened; the vCPUs go on."""
        self._port.quiet()
        return list(self._taken())

    def _taken(self) -> Iterator[Event]:
        """Take what is there, and let the vCPUs go on."""
        some = False
        for request in self._ring.take():
            event = self._event(request)
            self._answer(request, event)
            some = True
            if event is not None and self._wanted(event):
                yield event
        if some:
            self._port.notify()

    def _answer(self, request: ring.Request, event: Event | None) -> None:
        if request.reason == ring.MEM_ACCESS:
            self._ring.answer(request, ring.EMULATE)
        elif request.reason == ring.SOFTWARE_BREAKPOINT and event is not None:
            original = self._original.get(event.paddr or 0)
            if original is None:
                # The guest's own: it gets what it would have got.
                self._monitor.inject_breakpoint(request.vcpu)
                self._ring.answer(request)
            else:
                self._ring.answer(request, ring.EMULATE | ring.SET_INSTRUCTION, original)
        else:
            self._ring.answer(request)

    def _wanted(self, event: Event) -> bool:
        if event.kind is EventKind.STEP:
            return event.vcpu in self._stepped
        if event.kind is EventKind.ACCESS:
            wanted = self._watched.get((event.paddr or 0) // _PAGE, set())
            return not wanted.isdisjoint(event.access or "")
        return event.kind is not EventKind.BREAKPOINT or event.paddr in self._original

    def _event(self, request: ring.Request) -> Event | None:
        """Xen's report as a record."""
        vcpu, rip, cr3 = request.vcpu, request.rip, request.cr3
        if request.reason == ring.WRITE_CTRLREG:
            index, value, previous = struct.unpack_from("<I4xQQ", request.detail)
            return Event(
                EventKind.REGISTER, vcpu, time(), rip, cr3,
                register=_NAMES.get(index), previous=previous, value=value,
            )  # fmt: skip
        if request.reason == ring.MEM_ACCESS:
            frame, offset, vaddr, flags = struct.unpack_from("<3QI", request.detail)
            return Event(
                EventKind.ACCESS, vcpu, time(), rip, cr3,
                paddr=frame * _PAGE + offset, vaddr=vaddr if flags & _GLA_VALID else None,
                access="".join(c for bit, c in enumerate(_ACCESS) if flags >> bit & 1),
            )  # fmt: skip
        if request.reason in _AT_AN_INSTRUCTION:
            (frame,) = struct.unpack_from("<Q", request.detail)
            paddr = None if frame == _INVALID_GFN else frame * _PAGE + rip % _PAGE
            kind = _AT_AN_INSTRUCTION[request.reason]
            return Event(kind, vcpu, time(), rip, cr3, paddr=paddr, vaddr=rip)
        return None

    def _drain(self) -> None:
        """Let vCPUs go on that waited for room in the ring, until no event comes any more.

        Xen would free the ring while they still look at it (vm_event_wait_slot in
        xen/common/vm_event.c).
        """
        for _ in range(_ROUNDS):
            if not select.select([self._port], [], [], _SILENCE)[0]:
                break
            self.take()

    def close(self) -> None:
        """Watch no more; the guest is as it was. Twice is harmless.

        It is paused while Xen is told to report no more: a vCPU that has met a breakpoint of ours
        has said so by then, and executes what stood there before when it goes on.
        """
        started, self._started = self._started, contextlib.ExitStack()
        resources, self._resources = self._resources, contextlib.ExitStack()
        try:
            with resources, self._paused(), started:
                pass
        except (NoSuchTargetError, TargetGoneError):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class EventChannel:
    """A bell that Xen rings when there is something in the ring. A context manager."""

    def __init__(self, domid: int, remote: int) -> None:
        self._library = bindings.event_channels()
        self._handle = self._library.xenevtchn_open(None, 0)
        if not self._handle:
            raise bindings.not_here("open Xen's event channels")
        self._port = self._library.xenevtchn_bind_interdomain(self._handle, domid, remote)
        if self._port < 0:
            error = bindings.not_here("hear of the guest's events")
            self.close()
            raise error

    def fileno(self) -> int:
        """A descriptor that becomes readable when it rings."""
        descriptor: int = self._library.xenevtchn_fd(self._handle)
        return descriptor

    def quiet(self) -> None:
        """If it rings, make it stop; it rings again at the next one."""
        if select.select([self.fileno()], [], [], 0)[0]:
            port = self._library.xenevtchn_pending(self._handle)
            if port >= 0:
                self._library.xenevtchn_unmask(self._handle, port)

    def notify(self) -> None:
        """Tell Xen that there are answers."""
        self._library.xenevtchn_notify(self._handle, self._port)

    def close(self) -> None:
        """Close it; twice is harmless."""
        handle, self._handle = self._handle, None
        if handle:
            self._library.xenevtchn_close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
