"""Hypercalls for the events of one HVM or PVH guest.

xen/include/public: domctl.h (vm_event_op, monitor_op, debug_op), memory.h (reservations,
access_op) and hvm/hvm_op.h, hvm/params.h.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from virtintrospect.errors import MemoryAccessError, UnsupportedError
from virtintrospect_xen import bindings
from virtintrospect_xen.calls import Hypervisor

#: __HYPERVISOR_memory_op, __HYPERVISOR_hvm_op.
_MEMORY_OP, _HVM_OP = 12, 34
_DECREASE, _POPULATE, _ACCESS_OP = 1, 6, 21
_GET_PARAM, _MONITOR_RING_PFN = 1, 28
_DEBUG_OP, _VM_EVENT_OP, _MONITOR_OP = 54, 56, 77
#: XEN_VM_EVENT_*; XEN_DOMCTL_VM_EVENT_OP_MONITOR.
_ENABLE, _DISABLE, _MONITOR = 0, 1, 2
#: XEN_DOMCTL_MONITOR_OP_*; XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG.
_ON, _OFF, _CAPABILITIES, _WRITE_CTRLREG = 0, 1, 2, 0
#: HVMOP_TRAP_sw_exc, #BP, and that it has no error code.
_SOFTWARE, _BP, _NO_CODE = 6, 3, 0xFFFFFFFF


class Monitor:
    """The monitor of one guest, by an open way to Xen."""

    def __init__(self, hypervisor: Hypervisor, domid: int) -> None:
        self._xen, self.domid = hypervisor, domid

    def capabilities(self) -> int:
        """Which XEN_DOMCTL_MONITOR_EVENT_* there are: a bit each."""
        arguments = struct.pack("<II", _CAPABILITIES, 0)
        data = self._xen.domain_call(_MONITOR_OP, self.domid, arguments, "tell of its monitor")
        return int.from_bytes(data[4:8], "little")

    def frame(self) -> int:
        """The guest frame that is meant for the ring."""
        arguments = struct.pack("<HHIQ", self.domid, 0, _MONITOR_RING_PFN, 0)
        what = "tell where events go"
        data = self._xen.call(_HVM_OP, _GET_PARAM, arguments, self.domid, what)
        return int.from_bytes(data[8:16], "little")

    def populate(self, frame: int) -> None:
        """Put a page there."""
        self._reserve(_POPULATE, frame, "make room for events")

    def take_away(self, frame: int) -> None:
        """Take the page there out of the guest's reach; who has mapped it keeps it."""
        self._reserve(_DECREASE, frame, "keep the guest from its own events")

    def _reserve(self, command: int, frame: int, what: str) -> None:
        place = self._xen.beside(struct.pack("<Q", frame))
        arguments = struct.pack("<QQIIH6x", place, 1, 0, 0, self.domid)
        self._xen.call(_MEMORY_OP, command, arguments, self.domid, what)

    def enable(self) -> int:
        """Begin; the port that Xen rings at."""
        arguments = struct.pack("<III", _ENABLE, _MONITOR, 0)
        what = "report events: somebody else may watch this guest"
        data = self._xen.domain_call(_VM_EVENT_OP, self.domid, arguments, what)
        return int.from_bytes(data[8:12], "little")

    def disable(self) -> None:
        """End; all vCPUs that wait go on."""
        arguments = struct.pack("<III", _DISABLE, _MONITOR, 0)
        self._xen.domain_call(_VM_EVENT_OP, self.domid, arguments, "end its reports")

    def event(self, event: int, *, on: bool) -> None:
        """Have an event reported, or no more."""
        arguments = struct.pack("<II", _ON if on else _OFF, event)
        self._xen.domain_call(_MONITOR_OP, self.domid, arguments, "report this event")

    def register(self, index: int, *, on: bool) -> None:
        """Have writes of a control register reported, or no more.

        The vCPU does not wait for an answer, but for room in the ring.
        """
        operation = _ON if on else _OFF
        arguments = struct.pack("<IIBBB5xQ", operation, _WRITE_CTRLREG, index, 0, 0, 0)
        self._xen.domain_call(_MONITOR_OP, self.domid, arguments, "report this register")

    def step(self, vcpu: int, *, on: bool) -> None:
        """Have a vCPU stop after each instruction, or no more (hvm_debug_op in hvm/hvm.c)."""
        arguments = struct.pack("<II", on, vcpu)
        self._xen.domain_call(_DEBUG_OP, self.domid, arguments, f"step its vCPU {vcpu}")

    def access(self, frame: int, allowed: int) -> None:
        """Which accesses to a frame are not reported (xenmem_access_t).

        :raises UnsupportedError: Xen does so on other processors only
            (p2m_mem_access_sanity_check in xen/arch/x86/mm/mem_access.c).
        """
        arguments = struct.pack("<BBHIQQQ", 0, allowed, self.domid, 1, frame, 0, 0)
        what = "report accesses to this page"
        try:
            self._xen.call(_MEMORY_OP, _ACCESS_OP, arguments, self.domid, what)
        except MemoryAccessError as error:
            if ctypes.get_errno() != errno.EINVAL:
                raise
            raise UnsupportedError(
                "Xen does not report accesses to memory on this processor",
                hint="it does on Intel's, of HVM and PVH guests with hardware-assisted paging",
            ) from error

    def inject_breakpoint(self, vcpu: int) -> None:
        """Give a vCPU the exception of its own ``int3``."""
        library = bindings.device_model()
        handle = library.xendevicemodel_open(None, 0)
        if not handle:
            raise bindings.not_here("reach Xen's device model")
        done = library.xendevicemodel_inject_event(
            handle, self.domid, vcpu, _BP, _SOFTWARE, _NO_CODE, 1, 0
        )
        library.xendevicemodel_close(handle)
        if done < 0:
            raise MemoryAccessError("Xen cannot give the guest its own breakpoint")
