"""libvirt's binding, the only module that imports it, and a line to one running domain."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from virtintrospect.domain import Domain
from virtintrospect.errors import (
    AccessDeniedError,
    MemoryAccessError,
    TargetGoneError,
    VirtIntrospectError,
)

#: Most bytes that one virDomainMemoryPeek gives through libvirt's remote protocol, as it has
#: grown (REMOTE_DOMAIN_MEMORY_PEEK_BUFFER_MAX in src/remote/remote_protocol.x): 64 KiB at
#: first, 4 MiB today. Which one holds is found out by trying: client and daemon each refuse.
_PEEK_SIZES = (4 << 20, 1 << 20, 64 << 10)

#: How often it is made sure that the domain is still the one that was opened, in seconds.
_CHECK_INTERVAL = 1.0


class DomainLink:
    """A line to one running domain, which may be on another host, that allows changes.

    Peeking and the monitor are refused on read-only connections. Methods raise
    :exc:`~virtintrospect.errors.TargetGoneError` once the domain does not run any more, also
    when it was started anew.

    :param domain: what to open; its URI is the one that is connected to.
    :raises AccessDeniedError: libvirt does not let this user do more than look.
    :raises TargetGoneError: the domain does not run any more.
    :raises MemoryAccessError: libvirt cannot be reached.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._libvirt = load_libvirt()
        self._sizes = list(_PEEK_SIZES)
        self._handle: Any = None
        self._check_at = 0.0
        try:
            self._connection: Any = self._libvirt.open(domain.uri)
        except self._libvirt.libvirtError as error:
            raise connection_error(self._libvirt, error, domain.uri) from error
        try:
            self._handle = self._call(self._connection.lookupByUUIDString, domain.uuid)
            self.check()
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Make sure that the domain still runs, and that it was not started anew.

        :raises TargetGoneError: it does not, or it was.
        """
        if self._connection is None:
            raise MemoryAccessError(f"the line to domain {self.domain.name!r} is closed")
        if self.domain.id is None:
            raise self._gone("it is shut off")
        found = self._call(self._connection.lookupByID, self.domain.id)
        if found.UUIDString() != self.domain.uuid:
            raise self._gone("its number belongs to another one")
        self._check_at = time.monotonic() + _CHECK_INTERVAL

    @property
    def most(self) -> int:
        """The largest :meth:`peek`, in bytes, as far as is known; it may become smaller."""
        return self._sizes[0]

    def peek(self, paddr: int, size: int) -> bytes:
        """Guest-physical memory by virDomainMemoryPeek: the host's file system is used each time.

        :param size: at most :attr:`most` bytes, else several calls are made.
        :raises MemoryAccessError: libvirt refuses.
        """
        parts = []
        while size > 0:
            data = self._peek(paddr, size)
            parts.append(data)
            paddr += len(data)
            size -= len(data)
        return b"".join(parts)

    def monitor(self, command: str, files: Sequence[int] = ()) -> str:
        """Send a QMP command to QEMU, which marks the domain as tainted (``custom-monitor``).

        :param command: JSON.
        :param files: descriptors for QEMU; only on connections to this host.
        :returns: QEMU's reply, JSON too.
        """
        qemu = _load_libvirt_qemu()
        self._check_sometimes()
        if not files:
            reply: str = self._call(qemu.qemuMonitorCommand, self._handle, command, 0)
            return reply
        if not self._is_local():
            # libvirt 9.0 takes them, and then closes the connection.
            raise MemoryAccessError(f"{self.domain.uri} cannot carry descriptors")
        with_files = getattr(qemu, "qemuMonitorCommandWithFiles", None)
        if with_files is None:
            raise MemoryAccessError(
                "this libvirt cannot hand descriptors to QEMU", hint="libvirt 8.2 and later can"
            )
        reply, _ = self._call(with_files, self._handle, command, list(files), 0)
        return reply

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of libvirt-python's virDomain: ``call("suspend")``."""
        self._check_sometimes()
        return self._call(getattr(self._handle, method), *arguments)

    def host_cpu_vendor(self) -> str:
        """Vendor of the CPUs of the host that the domain runs on, ``AMD`` or ``Intel``."""
        import re

        capabilities = self._call(self._connection.getCapabilities)
        match = re.search(r"<vendor>([^<]{1,64})</vendor>", capabilities.partition("<guest>")[0])
        return match[1] if match else ""

    def close(self) -> None:
        """Close the connection; closing twice is harmless."""
        self._handle = None  # it would keep the connection open
        connection, self._connection = self._connection, None
        if connection is not None:
            # Where libvirt went away there is nothing left to close.
            with contextlib.suppress(self._libvirt.libvirtError):
                connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _is_local(self) -> bool:
        """Whether the connection is a socket of this host."""
        parts = urlsplit(self.domain.uri)
        return not parts.hostname and parts.scheme.partition("+")[2] in ("", "unix")

    def _peek(self, paddr: int, size: int) -> bytes:
        self._check_sometimes()
        libvirt = self._libvirt
        while True:
            step = min(size, self.most)
            try:
                data = self._handle.memoryPeek(paddr, step, libvirt.VIR_MEMORY_PHYSICAL)
            except libvirt.libvirtError as error:
                if not self._too_large(step, error):
                    raise self._error(error) from error
            else:
                if len(data) != step:
                    raise MemoryAccessError(
                        f"libvirt gave {len(data)} bytes of domain {self.domain.name!r} "
                        f"where {step} were asked for"
                    )
                return bytes(data)

    def _too_large(self, size: int, error: Any) -> bool:
        """Whether a smaller piece may be had; :attr:`most` is that size then."""
        codes = (self._libvirt.VIR_ERR_RPC, self._libvirt.VIR_ERR_INTERNAL_ERROR)
        smaller = [most for most in self._sizes if most < size]
        if error.get_error_code() not in codes or not smaller:
            return False
        self._sizes = smaller
        return True

    def _check_sometimes(self) -> None:
        if time.monotonic() >= self._check_at:
            self.check()

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._libvirt.libvirtError as error:
            raise self._error(error) from error

    def _gone(self, why: str) -> TargetGoneError:
        return TargetGoneError(
            f"domain {self.domain.name!r} does not run any more on {self.domain.uri}: {why}",
            hint="it was shut down or migrated; look at the domain again",
        )

    def _error(self, error: Any) -> VirtIntrospectError:
        libvirt, code = self._libvirt, error.get_error_code()
        what = f"domain {self.domain.name!r} on {self.domain.uri}"
        if code in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            return self._gone(str(error))
        if code in _denials(libvirt):
            return AccessDeniedError(
                f"{what}: libvirt refuses: {error}",
                hint="it takes a connection that may change domains: run as root, or let this "
                "user in by libvirt's polkit or access rules",
            )
        if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
            hint = "something else is being done with the domain (virsh domjobinfo): try again"
            return MemoryAccessError(f"{what}: libvirt is busy: {error}", hint=hint)
        if code == libvirt.VIR_ERR_NO_SUPPORT:
            hint = "libvirt offers this for QEMU only"
            return MemoryAccessError(f"{what}: {error}", hint=hint)
        return MemoryAccessError(f"{what}: {error}", hint="check that libvirt's daemon still runs")


def load_libvirt() -> Any:
    """The binding, imported when it is needed; it prints nothing by itself then."""
    try:
        import libvirt
    except ImportError as error:
        raise MemoryAccessError(
            f"libvirt-python cannot be imported: {error}",
            hint="pip install libvirt-python (it needs libvirt-dev, pkg-config and gcc)",
        ) from error
    # libvirt prints every error to standard error by itself unless told otherwise.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


def _load_libvirt_qemu() -> Any:
    try:
        import libvirt_qemu
    except ImportError as error:
        raise MemoryAccessError(
            f"this libvirt-python lacks its part for QEMU: {error}",
            hint="pip install libvirt-python",
        ) from error
    return libvirt_qemu


def connection_error(libvirt: Any, error: Any, uri: str | None) -> VirtIntrospectError:
    """What to raise when libvirt lets nobody in."""
    where = uri or "the default URI"
    if error.get_error_code() in _denials(libvirt) or "Permission denied" in str(error):
        return AccessDeniedError(
            f"libvirt refuses the connection to {where}: {error}",
            hint="run as root or join the group 'libvirt'",
        )
    return MemoryAccessError(
        f"cannot connect to libvirt at {where}: {error}",
        hint="start its daemon (systemctl start libvirtd, or virtqemud.socket), "
        "or give another -c URI",
    )


def _denials(libvirt: Any) -> set[int]:
    return {
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_CANCELLED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_OPERATION_DENIED,
        libvirt.VIR_ERR_ACCESS_DENIED,
    }
