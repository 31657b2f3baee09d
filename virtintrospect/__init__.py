"""Virtual machine introspection for libvirt hosts.

>>> import virtintrospect
>>> with virtintrospect.open("web01") as session:  # doctest: +SKIP
...     for process in session.guest.processes():
...         print(process.pid, process.name)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtintrospect.session import Session

__version__ = "0.1.0"
__all__ = ["__version__", "open"]


def open(target: str, uri: str | None = None) -> Session:  # noqa: A001 (as gzip.open, shelve.open)
    """Open a session on a domain or a memory image.

    :param target: name, id or UUID of a domain; or a path to an image, with a ``/`` in it.
    :param uri: libvirt connection, where ``target`` is a domain; virsh's default otherwise.
    :raises VirtIntrospectError: and its subclasses, see :mod:`virtintrospect.errors`.
    """
    from virtintrospect.session import open_session

    return open_session(target, uri)
