"""xenstore: the names of domains, and word of their coming and going."""

from __future__ import annotations

import ctypes
import errno
from typing import Self

from virtintrospect.errors import MemoryAccessError, NoSuchTargetError
from virtintrospect_xen import bindings

#: XBT_NULL: outside of any transaction.
_NO_TRANSACTION = 0
#: A name in xenstore is at most so long (XENSTORE_PAYLOAD_MAX, xs_wire.h).
_LONGEST = 4096
_DOMAINS = "/local/domain"


class Store:
    """A connection to xenstored. A context manager.

    :raises MemoryAccessError: it does not run, or this is no Xen host.
    """

    def __init__(self) -> None:
        self._library = bindings.xenstore()
        self._handle = self._library.xs_open(0)
        if not self._handle:
            raise bindings.not_here("reach xenstored")

    def read(self, path: str) -> str | None:
        """A value; ``None`` where there is none. What is no UTF-8 is escaped."""
        length = ctypes.c_uint(0)
        found = self._library.xs_read(
            self._need(), _NO_TRANSACTION, path.encode(), ctypes.byref(length)
        )
        if not found:
            return None
        try:
            return ctypes.string_at(found, min(length.value, _LONGEST)).decode(
                errors="backslashreplace"
            )
        finally:
            bindings.libc().free(found)

    def domains(self) -> dict[int, str]:
        """Names of all domains by their number; empty for one that has none yet."""
        count = ctypes.c_uint(0)
        found = self._library.xs_directory(
            self._need(), _NO_TRANSACTION, _DOMAINS.encode(), ctypes.byref(count)
        )
        if not found:
            raise MemoryAccessError(
                f"xenstore has no {_DOMAINS}", hint="is xen-init-dom0 run at boot (xencommons)?"
            )
        try:
            listed = (ctypes.c_char_p * count.value).from_address(found)
            numbers = [int(entry) for entry in listed if entry is not None and entry.isdigit()]
        finally:
            bindings.libc().free(found)
        return {number: self.read(f"{_DOMAINS}/{number}/name") or "" for number in sorted(numbers)}

    def find(self, wanted: str) -> int:
        """The number of the domain with this number or name.

        :raises NoSuchTargetError: there is none, or several have that name.
        """
        known = self.domains()
        if wanted.isascii() and wanted.isdecimal() and int(wanted) in known:
            return int(wanted)
        named = [number for number, name in known.items() if name == wanted]
        if len(named) == 1:
            return named[0]
        if named:
            numbers = ", ".join(map(str, named))
            raise NoSuchTargetError(
                f"{len(named)} domains are called {wanted!r}: {numbers}", hint="give the number"
            )
        raise NoSuchTargetError(
            f"Xen has no domain {wanted!r}", hint="`xl list` shows those there are"
        )

    def watch_domains(self) -> None:
        """From now on :meth:`fileno` becomes readable when a domain comes or goes."""
        for path in (b"@introduceDomain", b"@releaseDomain"):
            if not self._library.xs_watch(self._need(), path, path):
                raise bindings.not_here("watch xenstore")

    def fileno(self) -> int:
        """A descriptor to wait on."""
        descriptor: int = self._library.xs_fileno(self._need())
        return descriptor

    def take_watches(self) -> None:
        """Take what has been said; :meth:`fileno` is quiet again afterwards.

        :raises MemoryAccessError: xenstored does not answer any more.
        """
        while found := self._library.xs_check_watch(self._need()):
            bindings.libc().free(found)
        if ctypes.get_errno() != errno.EAGAIN:
            raise bindings.not_here("hear from xenstored")

    def close(self) -> None:
        """Close the connection; twice is harmless."""
        handle, self._handle = self._handle, None
        if handle:
            self._library.xs_close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _need(self) -> int:
        if not self._handle:
            raise MemoryAccessError("the connection to xenstored is closed")
        handle: int = self._handle
        return handle
