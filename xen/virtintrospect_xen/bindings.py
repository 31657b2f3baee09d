"""Xen's libraries, by ctypes: what we call of them, and nothing else.

Those with a stable interface: libxenforeignmemory.so.1 (tools/include/xenforeignmemory.h),
libxencall.so.1 (xencall.h) and libxenstore.so.4 (xenstore.h). libxenctrl changes with every
release of Xen and is not used: what it would do goes through libxencall (``calls.py``).

A library or a privilege that is missing is one error that says so.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from virtintrospect.errors import AccessDeniedError, MemoryAccessError, VirtIntrospectError

_FOREIGN, _CALL, _STORE = "libxenforeignmemory.so.1", "libxencall.so.1", "libxenstore.so.4"
#: For events only.
_CHANNEL, _MODEL = "libxenevtchn.so.1", "libxendevicemodel.so.1"
_PACKAGES = {
    _CHANNEL: "libxenevtchn1",
    _MODEL: "libxendevicemodel1",
    _FOREIGN: "libxenforeignmemory1",
    _CALL: "libxencall1",
    _STORE: "libxenstore4",
}
#: What a dom0 kernel with Xen's drivers has; a machine that does not run Xen has none of it.
PRIVCMD = Path("/dev/xen/privcmd")
_HYPERVISOR_TYPE = Path("/sys/hypervisor/type")


def not_here(doing: str) -> VirtIntrospectError:
    """Why Xen cannot be reached from here, after ``doing`` something failed."""
    number = ctypes.get_errno()
    if number in (errno.EACCES, errno.EPERM):
        return AccessDeniedError(
            f"Xen refuses to {doing}: {os.strerror(number)}",
            hint="run as root in dom0; with XSM, its policy must allow it",
        )
    try:
        on_xen = _HYPERVISOR_TYPE.read_text(errors="replace").strip() == "xen"
    except OSError:
        on_xen = False
    if not on_xen:
        return MemoryAccessError(
            f"cannot {doing}: this machine does not run on Xen",
            hint="run this in the domain 0 of a Xen host",
        )
    if not PRIVCMD.exists():
        return MemoryAccessError(
            f"cannot {doing}: {PRIVCMD} is missing",
            hint="modprobe xen-privcmd; only domain 0 reaches other domains' memory",
        )
    return MemoryAccessError(
        f"cannot {doing}: {os.strerror(number)}", hint="see `xl dmesg` for Xen's own word"
    )


@cache
def foreign_memory() -> Any:
    """Of libxenforeignmemory: frames of other domains."""
    library = _load(_FOREIGN)
    pointer, number = ctypes.c_void_p, ctypes.c_size_t
    _declare(library.xenforeignmemory_open, pointer, pointer, ctypes.c_uint)
    _declare(library.xenforeignmemory_close, ctypes.c_int, pointer)
    _declare(library.xenforeignmemory_restrict, ctypes.c_int, pointer, ctypes.c_uint16)
    _declare(
        library.xenforeignmemory_map2,
        pointer, pointer, ctypes.c_uint32, pointer, ctypes.c_int, ctypes.c_int, number, pointer,
        pointer,
    )  # fmt: skip
    return library


@cache
def hypercalls() -> Any:
    """Of libxencall: hypercalls."""
    library = _load(_CALL)
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    _declare(library.xencall_open, pointer, pointer, ctypes.c_uint)
    _declare(library.xencall_close, ctypes.c_int, pointer)
    _declare(library.xencall1, ctypes.c_int, pointer, ctypes.c_uint, number)
    _declare(library.xencall2, ctypes.c_int, pointer, ctypes.c_uint, number, number)
    _declare(library.xencall2L, ctypes.c_long, pointer, ctypes.c_uint, number, number)
    _declare(library.xencall_alloc_buffer_pages, pointer, pointer, ctypes.c_size_t)
    _declare(library.xencall_free_buffer_pages, None, pointer, pointer, ctypes.c_size_t)
    return library


@cache
def xenstore() -> Any:
    """Of libxenstore: the names of domains."""
    library = _load(_STORE)
    pointer, text, count = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint)
    _declare(library.xs_open, pointer, ctypes.c_ulong)
    _declare(library.xs_close, None, pointer)
    _declare(library.xs_read, pointer, pointer, ctypes.c_uint32, text, count)
    _declare(library.xs_directory, pointer, pointer, ctypes.c_uint32, text, count)
    _declare(library.xs_watch, ctypes.c_bool, pointer, text, text)
    _declare(library.xs_fileno, ctypes.c_int, pointer)
    _declare(library.xs_check_watch, pointer, pointer)
    return library


@cache
def event_channels() -> Any:
    """Of libxenevtchn: to be told that another domain, or Xen, has something for us."""
    library = _load(_CHANNEL)
    pointer, number = ctypes.c_void_p, ctypes.c_uint32
    _declare(library.xenevtchn_open, pointer, pointer, ctypes.c_uint)
    _declare(library.xenevtchn_close, ctypes.c_int, pointer)
    _declare(library.xenevtchn_fd, ctypes.c_int, pointer)
    _declare(library.xenevtchn_bind_interdomain, ctypes.c_int, pointer, number, number)
    _declare(library.xenevtchn_pending, ctypes.c_int, pointer)
    for name in ("unmask", "notify"):
        _declare(getattr(library, f"xenevtchn_{name}"), ctypes.c_int, pointer, number)
    return library


@cache
def device_model() -> Any:
    """Of libxendevicemodel: exceptions for a vCPU."""
    library = _load(_MODEL)
    pointer, number = ctypes.c_void_p, ctypes.c_uint32
    _declare(library.xendevicemodel_open, pointer, pointer, ctypes.c_uint)
    _declare(library.xendevicemodel_close, ctypes.c_int, pointer)
    _declare(
        library.xendevicemodel_inject_event,
        ctypes.c_int, pointer, ctypes.c_uint16, ctypes.c_int, ctypes.c_uint8, ctypes.c_uint8,
        number, number, ctypes.c_uint64,
    )  # fmt: skip
    return library


@cache
def libc() -> Any:
    """The C library: ``free`` for what libxenstore has allocated, and mmap at an address."""
    library = ctypes.CDLL(None, use_errno=True)
    pointer, number = ctypes.c_void_p, ctypes.c_size_t
    _declare(library.free, None, pointer)
    _declare(
        library.mmap,
        pointer, pointer, number, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    _declare(library.munmap, ctypes.c_int, pointer, number)
    return library


def _load(name: str) -> Any:
    try:
        return ctypes.CDLL(name, use_errno=True)
    except OSError as error:
        _missing(name, error)


def _missing(name: str, error: OSError) -> NoReturn:
    raise MemoryAccessError(
        f"Xen's library {name} cannot be loaded: {error}",
        hint=f"in a Xen host's domain 0: apt-get install {_PACKAGES[name]}",
    ) from error


def _declare(function: Any, result: Any, *arguments: Any) -> None:
    function.restype = result
    function.argtypes = arguments
