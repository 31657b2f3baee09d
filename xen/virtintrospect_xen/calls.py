"""Hypercalls that concern one domain: what it is, its registers, stop and go on.

domctl (xen/include/public/domctl.h) is not a stable interface: each version has a number, and
Xen answers EACCES to another. The parts used here lie where they are since 4.3, the newest seen
is 4.21; so the number is found by asking, and the answers are checked.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import uuid
from dataclasses import dataclass
from typing import Self

from virtintrospect.errors import (
    AccessDeniedError,
    MemoryAccessError,
    NoSuchTargetError,
    TargetGoneError,
    VirtIntrospectError,
)
from virtintrospect_xen import bindings

#: __HYPERVISOR_memory_op, __HYPERVISOR_domctl (xen/include/public/xen.h).
_MEMORY_OP, _DOMCTL = 12, 36
#: XENMEM_* (memory.h).
_MACHPHYS_LIST, _MAXIMUM_GPFN, _GET_POD_TARGET = 5, 14, 17
#: XEN_DOMCTL_*.
_PAUSE, _UNPAUSE, _GET_INFO, _SET_CONTEXT, _GET_CONTEXT = 3, 4, 5, 12, 13
_GET_ADDRESS_SIZE, _GET_HVM_PART = 36, 55
#: XEN_DOMCTL_INTERFACE_VERSION: that of 4.17, then the others from 4.9 to those to come.
_VERSIONS = (0x15, *range(0x16, 0x20), *range(0x14, 0x0B, -1))
#: struct xen_domctl: command, interface version, domain, then the arguments.
_HEAD = struct.Struct("<IIH6x")
_ARGUMENTS_AT = _HEAD.size
#: domain, flags, tot_pages, max_pages, outstanding, shared, paged, shared_info_frame, cpu_time,
#: online vCPUs, highest vCPU, ssidref, handle.
_INFO = struct.Struct("<H2xI7QIII16s")
#: struct xen_pod_target (memory.h): target, pages, pages of the cache, entries, domain.
_POD_TARGET = struct.Struct("<4QH6x")
_DYING, _HVM, _SHUTDOWN, _PAUSED, _HAP = 0x1, 0x2, 0x4, 0x8, 0x100
#: HVM_SAVE_CODE(CPU).
_HVM_CPU = 2
_PAGES = 4
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """What Xen says of a domain (struct xen_domctl_getdomaininfo)."""

    domid: int
    flags: int
    #: Pages that it has now, and may have.
    pages: int
    max_pages: int
    shared_pages: int
    paged_pages: int
    #: Frame of its shared_info page: machine frame of a PV guest.
    shared_info_frame: int
    #: Nanoseconds that its vCPUs have run.
    cpu_time: int
    vcpus_online: int
    highest_vcpu: int
    uuid: str

    @property
    def hvm(self) -> bool:
        """HVM or PVH: its page tables hold guest frames."""
        return bool(self.flags & _HVM)

    @property
    def dying(self) -> bool:
        """It has been destroyed; its memory is being given back."""
        return bool(self.flags & _DYING)

    @property
    def state(self) -> str:
        """In the words of ``virsh list``."""
        if self.flags & _DYING:
            return "in shutdown"
        if self.flags & _SHUTDOWN:
            # SHUTDOWN_crash (sched.h)
            return "crashed" if self.flags >> 16 & 0xFF == 3 else "shut off"
        return "paused" if self.flags & _PAUSED else "running"


class Hypervisor:
    """An open way to Xen for hypercalls. A context manager.

    :raises MemoryAccessError: this is no Xen, or not its domain 0.
    :raises AccessDeniedError: privileges are missing.
    """

    def __init__(self) -> None:
        self._library = bindings.hypercalls()
        self._handle = self._library.xencall_open(None, 0)
        if not self._handle:
            raise bindings.not_here("open Xen's hypercalls")
        self._buffer = self._library.xencall_alloc_buffer_pages(self._handle, _PAGES)
        if not self._buffer:
            error = bindings.not_here("get memory for hypercalls")
            self.close()
            raise error
        self._version = 0

    def close(self) -> None:
        """Close it; twice is harmless."""
        handle, self._handle = self._handle, None
        if handle:
            buffer, self._buffer = getattr(self, "_buffer", None), None
            if buffer:
                self._library.xencall_free_buffer_pages(handle, buffer, _PAGES)
            self._library.xencall_close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def info(self, domid: int) -> DomainInfo:
        """What a domain is.

        :raises NoSuchTargetError: there is none of that number.
        """
        data = self._domctl(_GET_INFO, domid, b"", f"ask for domain {domid}")
        number, flags, pages, most, _, shared, paged, frame, time, online, highest, _, handle = (
            _INFO.unpack_from(data)
        )
        if number != domid:  # an older Xen answers with the next one there is
            raise _no_domain(domid)
        return DomainInfo(
            number, flags, pages, most, shared, paged, frame, time, online, highest,
            str(uuid.UUID(bytes=handle)),
        )  # fmt: skip

    def address_size(self, domid: int) -> int:
        """Bits of a PV guest's addresses: 32 or 64 (XEN_DOMCTL_get_address_size)."""
        data = self._domctl(_GET_ADDRESS_SIZE, domid, b"", f"ask for domain {domid}")
        return int.from_bytes(data[:4], "little")

    def highest_frame(self, domid: int) -> int:
        """The highest guest frame that a domain uses (XENMEM_maximum_gpfn)."""
        ctypes.memmove(self._need(), struct.pack("<H", domid), 2)
        found: int = self._library.xencall2L(self._handle, _MEMORY_OP, _MAXIMUM_GPFN, self._buffer)
        if found < 0:
            raise self._error(f"ask for the memory of domain {domid}", domid)
        return found

    def populated_on_demand(self, domid: int) -> tuple[int, int]:
        """Pages that an HVM or PVH guest is given when they are touched, and those kept for that.

        Whoever touches them: a foreign mapping does it as well (XENMEM_get_pod_target).
        """
        asked = _POD_TARGET.pack(0, 0, 0, 0, domid)
        what = f"ask for the memory of domain {domid}"
        _, _, kept, entries, _ = _POD_TARGET.unpack(
            self.call(_MEMORY_OP, _GET_POD_TARGET, asked, domid, what)
        )
        return entries, kept

    def machine_to_physical_frames(self) -> list[int]:
        """Where Xen keeps the table from machine frames to their owners' guest frames.

        The machine frame of each 2 MiB of it (XENMEM_machphys_mfn_list): enough for 1 GiB of
        the host's memory each.
        """
        room = 3 * _PAGE // 8
        listed = self._need() + _PAGE
        ctypes.memmove(self._buffer, struct.pack("<I4xQI4x", room, listed, 0), 24)
        done = self._library.xencall2L(self._handle, _MEMORY_OP, _MACHPHYS_LIST, self._buffer)
        if done < 0:
            raise self._error("ask for the table of machine frames", -1)
        (count,) = struct.unpack_from("<I", ctypes.string_at(self._buffer, 24), 16)
        count = min(count, room)
        return list(struct.unpack(f"<{count}Q", ctypes.string_at(listed, 8 * count)))

    def context(self, domid: int, vcpu: int, size: int) -> bytes:
        """The registers of a vCPU, as XEN_DOMCTL_getvcpucontext gives them.

        :raises NoSuchTargetError: there is no such vCPU, or it was never started.
        """
        arguments = struct.pack("<I4xQ", vcpu, self._need() + _PAGE)
        self._domctl(_GET_CONTEXT, domid, arguments, f"read registers of vCPU {vcpu}", vcpu)
        return ctypes.string_at(self._need() + _PAGE, size)

    def set_context(self, domid: int, vcpu: int, context: bytes) -> None:
        """Set the registers of a vCPU (XEN_DOMCTL_setvcpucontext)."""
        ctypes.memmove(self._need() + _PAGE, context, len(context))
        arguments = struct.pack("<I4xQ", vcpu, self._need() + _PAGE)
        self._domctl(_SET_CONTEXT, domid, arguments, f"set registers of vCPU {vcpu}", vcpu)

    def hvm_cpu(self, domid: int, vcpu: int, size: int) -> bytes:
        """The CPU's record of an HVM or PVH guest's state (struct hvm_hw_cpu)."""
        room = 3 * _PAGE
        arguments = struct.pack("<IIQQ", _HVM_CPU, vcpu, room, self._need() + _PAGE)
        self._domctl(_GET_HVM_PART, domid, arguments, f"read registers of vCPU {vcpu}", vcpu)
        return ctypes.string_at(self._need() + _PAGE, size)

    def domain_call(self, command: int, domid: int, arguments: bytes, what: str) -> bytes:
        """Another domctl of a domain: what Xen has written behind its head.

        :param what: what it does, for the error: "Xen refuses to …".
        """
        return self._domctl(command, domid, arguments, what)

    def call(self, number: int, command: int, arguments: bytes, domid: int, what: str) -> bytes:
        """A hypercall with a command and a structure, and the structure afterwards.

        :param what: as of :meth:`domain_call`.
        """
        ctypes.memmove(self._need(), arguments, len(arguments))
        done = self._library.xencall2L(self._handle, number, command, self._buffer)
        if done < 0:
            raise self._error(what, domid)
        return ctypes.string_at(self._need(), len(arguments))

    def beside(self, content: bytes) -> int:
        """Put what a structure points to into memory that Xen can read; where it is."""
        place = self._need() + _PAGE
        ctypes.memmove(place, content, len(content))
        return place

    def pause(self, domid: int) -> None:
        """Stop a domain; Xen counts, so others may have stopped it as well."""
        self._domctl(_PAUSE, domid, b"", f"pause domain {domid}")

    def unpause(self, domid: int) -> None:
        """Undo one :meth:`pause`."""
        self._domctl(_UNPAUSE, domid, b"", f"let domain {domid} go on")

    def _need(self) -> int:
        if not self._handle:
            raise MemoryAccessError("the way to Xen is closed")
        address: int = self._buffer
        return address

    def _domctl(
        self, command: int, domid: int, arguments: bytes, what: str, vcpu: int = -1
    ) -> bytes:
        versions = (self._version,) if self._version else _VERSIONS
        for version in versions:
            call = _HEAD.pack(command, version, domid) + arguments
            ctypes.memmove(self._need(), call.ljust(256, b"\0"), 256)
            done = self._library.xencall1(self._handle, _DOMCTL, self._buffer)
            if done >= 0:
                self._version = version
                return ctypes.string_at(self._buffer + _ARGUMENTS_AT, 256)
            if ctypes.get_errno() != errno.EACCES:
                break
        else:
            if not self._version and os.geteuid() == 0:
                self._find_version(domid)
                ctypes.set_errno(errno.EACCES)
        raise self._error(what, domid, vcpu)

    def _find_version(self, domid: int) -> None:
        """Find out whether EACCES to every version is a security module's word (XSM).

        :raises MemoryAccessError: it is not: Xen says the same of domain 0.
        """
        if not domid:
            raise MemoryAccessError(
                "Xen speaks a version of its control interface that is not known here",
                hint=f"known are {min(_VERSIONS):#x} to {max(_VERSIONS):#x}; report it, "
                "with what `xl info` says",
            )
        self._domctl(_GET_INFO, 0, b"", "ask for domain 0")

    def _error(self, what: str, domid: int, vcpu: int = -1) -> VirtIntrospectError:
        number = ctypes.get_errno()
        if number == errno.ESRCH:
            return _no_domain(domid) if vcpu < 0 else TargetGoneError(f"domain {domid} is gone")
        if vcpu >= 0 and number in (errno.EINVAL, errno.ENODATA, errno.ENOENT, errno.ESRCH):
            return NoSuchTargetError(f"domain {domid} has no vCPU {vcpu} that was started")
        if number in (errno.EACCES, errno.EPERM):
            return AccessDeniedError(
                f"Xen refuses to {what}: {os.strerror(number)}",
                hint="run as root in dom0; with XSM, its policy must allow it",
            )
        return MemoryAccessError(f"Xen cannot {what}: {os.strerror(number)}")


def _no_domain(domid: int) -> NoSuchTargetError:
    return NoSuchTargetError(f"Xen has no domain {domid}", hint="`xl list` shows those there are")
