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

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_INT, _UINT, _U32, _U64 = ctypes.c_int, ctypes.c_uint, ctypes.c_uint32, ctypes.c_uint64
#: What gives a handle of a library and what takes it back, in most of them.
_OPEN, _CLOSE = (_POINTER, _POINTER, _UINT), (_INT, _POINTER)


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
    return _declared(
        _load(_FOREIGN),
        "xenforeignmemory_",
        open=_OPEN,
        close=_CLOSE,
        restrict=(_INT, _POINTER, ctypes.c_uint16),
        map2=(_POINTER, _POINTER, _U32, _POINTER, _INT, _INT, _SIZE, _POINTER, _POINTER),
    )


@cache
def hypercalls() -> Any:
    """Of libxencall: hypercalls."""
    return _declared(
        _load(_CALL),
        "xencall",
        _open=_OPEN,
        _close=_CLOSE,
        **{
            "1": (_INT, _POINTER, _UINT, _U64),
            "2": (_INT, _POINTER, _UINT, _U64, _U64),
            "2L": (ctypes.c_long, _POINTER, _UINT, _U64, _U64),
        },
        _alloc_buffer_pages=(_POINTER, _POINTER, _SIZE),
        _free_buffer_pages=(None, _POINTER, _POINTER, _SIZE),
    )


@cache
def xenstore() -> Any:
    """Of libxenstore: the names of domains."""
    text, count = ctypes.c_char_p, ctypes.POINTER(_UINT)
    return _declared(
        _load(_STORE),
        "xs_",
        open=(_POINTER, ctypes.c_ulong),
        close=(None, _POINTER),
        read=(_POINTER, _POINTER, _U32, text, count),
        directory=(_POINTER, _POINTER, _U32, text, count),
        watch=(ctypes.c_bool, _POINTER, text, text),
        fileno=(_INT, _POINTER),
        check_watch=(_POINTER, _POINTER),
    )


@cache
def event_channels() -> Any:
    """Of libxenevtchn: to be told that another domain, or Xen, has something for us."""
    return _declared(
        _load(_CHANNEL),
        "xenevtchn_",
        open=_OPEN,
        close=_CLOSE,
        fd=(_INT, _POINTER),
        bind_interdomain=(_INT, _POINTER, _U32, _U32),
        pending=(_INT, _POINTER),
        unmask=(_INT, _POINTER, _U32),
        notify=(_INT, _POINTER, _U32),
    )


@cache
def device_model() -> Any:
    """Of libxendevicemodel: exceptions for a vCPU."""
    byte = ctypes.c_uint8
    return _declared(
        _load(_MODEL),
        "xendevicemodel_",
        open=_OPEN,
        close=_CLOSE,
        inject_event=(_INT, _POINTER, ctypes.c_uint16, _INT, byte, byte, _U32, _U32, _U64),
    )


@cache
def libc() -> Any:
    """The C library: ``free`` for what libxenstore has allocated, and mmap at an address."""
    return _declared(
        ctypes.CDLL(None, use_errno=True),
        "",
        free=(None, _POINTER),
        mmap=(_POINTER, _POINTER, _SIZE, _INT, _INT, _INT, ctypes.c_int64),
        munmap=(_INT, _POINTER, _SIZE),
    )


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


def _declared(library: Any, prefix: str, **functions: tuple[Any, ...]) -> Any:
    """A library, told what its functions give and what they take, in this order."""
    for name, (result, *arguments) in functions.items():
        function = getattr(library, prefix + name)
        function.restype, function.argtypes = result, arguments
    return library
