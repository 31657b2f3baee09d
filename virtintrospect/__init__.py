"""Virtual machine introspection for libvirt hosts.

>>> import virtintrospect
>>> with virtintrospect.open("qemu:///system", "web01") as guest:  # doctest: +SKIP
...     for process in guest.processes():
...         print(process.pid, process.name)

:func:`open` gives a :class:`~virtintrospect.session.Session`; docs/library.md is a guide. All
errors derive from :exc:`~virtintrospect.errors.VirtIntrospectError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from virtintrospect.errors import (
    AccessDeniedError,
    CorruptDataError,
    EncryptedMemoryError,
    FaultError,
    GuestNotRecognisedError,
    ImageFormatError,
    MemoryAccessError,
    MissingSymbolsError,
    MissingTypesError,
    NoSuchTargetError,
    NotFoundError,
    NotWritableError,
    OutputError,
    SymbolNotFoundError,
    TargetGoneError,
    TypeNotFoundError,
    UnsupportedError,
    UsageError,
    VirtIntrospectError,
)

if TYPE_CHECKING:
    from virtintrospect.domain import Domain
    from virtintrospect.driver import Access
    from virtintrospect.guests.base import Guest
    from virtintrospect.session import Session

__version__ = "0.1.0"
__all__ = [
    "Access",
    "AccessDeniedError",
    "CorruptDataError",
    "Domain",
    "EncryptedMemoryError",
    "FaultError",
    "Guest",
    "GuestNotRecognisedError",
    "ImageFormatError",
    "MemoryAccessError",
    "MissingSymbolsError",
    "MissingTypesError",
    "NoSuchTargetError",
    "NotFoundError",
    "NotWritableError",
    "OutputError",
    "Session",
    "SymbolNotFoundError",
    "TargetGoneError",
    "TypeNotFoundError",
    "UnsupportedError",
    "UsageError",
    "VirtIntrospectError",
    "__version__",
    "domains",
    "open",
]

#: What is loaded when it is first asked for.
_WHERE = {
    "Access": "virtintrospect.driver",
    "Domain": "virtintrospect.domain",
    "Guest": "virtintrospect.guests.base",
    "Session": "virtintrospect.session",
}


@overload
def open(  # noqa: A001
    target: str | Domain, *, uri: str | None = None, access: Access | None = None
) -> Session: ...


@overload
def open(uri: str, target: str, /, *, access: Access | None = None) -> Session: ...  # noqa: A001


def open(  # noqa: A001 (as gzip.open, shelve.open)
    target: str | Domain,
    name: str | None = None,
    *,
    uri: str | None = None,
    access: Access | None = None,
) -> Session:
    """Open a session on a domain or a memory image.

    ``open("web01")``, ``open("qemu:///system", "web01")``, ``open("./web01.core")``.

    :param target: name, id or UUID of a domain; a path to an image, with a ``/`` in it; or a
        :class:`~virtintrospect.domain.Domain` of :func:`domains`.
    :param uri: libvirt connection that has the domain, in front of the target or by name;
        virsh's default otherwise.
    :param access: which transport, and what is allowed: ``Access(transport="peek")``. By default
        the best way that works and that leaves everything as it is.
    :raises UsageError: there is no transport of that name, or it needs what is not allowed.
    :raises NoSuchTargetError: there is no such domain or file.
    :raises MemoryAccessError: libvirt or the guest's memory cannot be reached.
    """
    from virtintrospect.driver import READ_ONLY
    from virtintrospect.session import open_domain, open_session

    if name is not None:
        if uri is not None or not isinstance(target, str):
            raise UsageError(
                "one connection and one target", hint='open("qemu:///system", "web01")'
            )
        target, uri = name, target
    how = READ_ONLY if access is None else access
    if isinstance(target, str):
        return open_session(target, uri, access=how)
    return open_domain(target, access=how)


def domains(uri: str | None = None, *, active_only: bool = True) -> list[Domain]:
    """The domains of a libvirt connection, running ones first.

    :param uri: the connection; virsh's default when not given.
    :param active_only: leave out those that are shut off.
    :raises MemoryAccessError: libvirt cannot be reached.
    """
    from virtintrospect.host import connect

    with connect(uri) as host:
        return list(host.domains(active_only=active_only))


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
