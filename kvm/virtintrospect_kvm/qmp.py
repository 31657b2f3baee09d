"""QEMU's monitor: commands and their typed replies, over its socket or through libvirt."""

from __future__ import annotations

import abc
import contextlib
import json
import logging
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from virtintrospect.connection import DomainLink
from virtintrospect.domain import Domain
from virtintrospect.driver import Access
from virtintrospect.errors import (
    AccessDeniedError,
    MemoryAccessError,
    NoSuchTargetError,
    TargetGoneError,
    UsageError,
)

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

_log = logging.getLogger("virtintrospect.monitor")

#: Seconds that QEMU may take for a command. Its main loop answers in milliseconds, unless it
#: is stuck; ``pmemsave`` of a few MiB takes some more.
_PATIENCE = 20.0
#: Seconds until QEMU must have greeted: it serves one client at a time, others wait for ever.
_GREETING_PATIENCE = 3.0

_Values = Mapping[str, Any]


class MonitorError(MemoryAccessError):
    """QEMU refuses a command.

    :param command: name of the command.
    :param kind: QEMU's class of the error: ``CommandNotFound``, ``GenericError`` …
    """

    def __init__(self, command: str, kind: str, text: str) -> None:
        super().__init__(f"QEMU's monitor refuses {command!r}: {text} ({kind})")
        self.command = command
        self.kind = kind


class Monitor(abc.ABC):
    """A connection to the monitor of one QEMU. A context manager; one thread at a time."""

    @abc.abstractmethod
    def command(
        self, name: str, arguments: _Values | None = None, *, files: Sequence[int] = ()
    ) -> Any:
        """Run a command.

        :param name: as in QEMU's reference of QMP, e.g. ``query-status``.
        :param arguments: the command's arguments.
        :param files: descriptors that go with it, for ``add-fd`` and ``getfd``.
        :returns: what QEMU gives under ``return``, not checked in any way.
        :raises MonitorError: QEMU refuses it.
        :raises TargetGoneError: QEMU has ended.
        :raises MemoryAccessError: there is no answer, or none that makes sense.
        """

    def human(self, line: str) -> str:
        """Run a command of the human monitor, e.g. ``info registers``, and give its text.

        Errors are text, too: QEMU does not tell them from an answer.
        """
        text = self.command("human-monitor-command", {"command-line": line})
        if not isinstance(text, str):
            raise MemoryAccessError(f"QEMU's monitor gives no text for {line!r}")
        return text.replace("\r\n", "\n")

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of it; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class LibvirtMonitor(Monitor):
    """The monitor that libvirt holds, through qemuMonitorCommand.

    libvirt marks the domain as tainted (``custom-monitor``) with the first command.

    :param link: the domain; not closed with this.
    """

    def __init__(self, link: DomainLink) -> None:
        self._link = link

    def command(  # noqa: D102 (inherited)
        self, name: str, arguments: _Values | None = None, *, files: Sequence[int] = ()
    ) -> Any:
        request = json.dumps({"execute": name, "arguments": dict(arguments or {})})
        text = self._link.monitor(request, files)
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise MemoryAccessError(f"QEMU's answer to {name!r} makes no sense")
        if "return" in reply:
            return reply["return"]
        error = reply.get("error")
        error = error if isinstance(error, dict) else {}
        raise MonitorError(name, str(error.get("class")), str(error.get("desc")))

    def close(self) -> None:
        """Nothing: the link is somebody else's."""


def open_libvirt_monitor(link: DomainLink, access: Access) -> LibvirtMonitor:
    """The monitor of a domain, if the user allows what that does to it, and say so.

    :raises UsageError: ``access`` does not allow it.
    """
    refuse_taint(link.domain, access)
    _log.warning(
        "libvirt now marks domain %r as tainted (custom-monitor), until it is shut off",
        link.domain.name,
    )
    return LibvirtMonitor(link)


def refuse_taint(domain: Domain, access: Access) -> None:
    """Make sure that the user allows what makes libvirt mark the domain as tainted.

    :raises UsageError: it is not allowed.
    """
    if not access.taint:
        raise UsageError(
            f"QEMU's monitor would make libvirt mark domain {domain.name!r} as tainted",
            hint="allow it with --allow-taint; it changes nothing in the guest",
        )


class SocketMonitor(Monitor):
    """The monitor of a QEMU without libvirt, over its QMP socket.

    :param path: the socket (``-qmp unix:PATH,server=on,wait=off``).
    :raises NoSuchTargetError: there is no such socket.
    :raises AccessDeniedError: it may not be opened.
    :raises MemoryAccessError: QEMU does not answer there, or serves another client.
    """

    def __init__(self, path: str) -> None:
        import asyncio  # costs 30 ms, which guests of libvirt need not pay

        from qemu.qmp import QMPClient

        self.path = path
        self._loop = asyncio.new_event_loop()
        self._client: QMPClient | None = QMPClient("virtintrospect")
        self._client.logger.setLevel(logging.CRITICAL)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def command(  # noqa: D102 (inherited)
        self, name: str, arguments: _Values | None = None, *, files: Sequence[int] = ()
    ) -> Any:
        from qemu.qmp import ExecuteError, QMPError

        if self._client is None:
            raise MemoryAccessError(f"the monitor {self.path} is closed")
        try:
            for descriptor in files:
                self._client.send_fd_scm(descriptor)
            return self._run(self._client.execute(name, dict(arguments or {})), _PATIENCE)
        except ExecuteError as error:
            raise MonitorError(name, error.error_class, str(error)) from error
        except TimeoutError as error:
            self.close()  # its reply would be taken for the next command's
            raise MemoryAccessError(
                f"QEMU does not answer {name!r} on {self.path} within {_PATIENCE:.0f} s"
            ) from error
        except (QMPError, OSError, EOFError) as error:
            self.close()
            raise TargetGoneError(
                f"the QEMU behind {self.path} has ended, or closed its monitor: {error}",
                hint="start it, then look again",
            ) from error

    def close(self) -> None:  # noqa: D102 (inherited)
        from qemu.qmp import QMPError

        client, self._client = self._client, None
        if client is None:
            return
        try:
            # What ended the connection is told here once more.
            with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
                self._run(client.disconnect(), 2.0)
        finally:
            self._loop.close()

    def _connect(self) -> None:
        from qemu.qmp import QMPError

        assert self._client is not None
        try:
            self._run(self._client.connect(_connected(self.path)), _GREETING_PATIENCE)
        except TimeoutError as error:
            raise MemoryAccessError(
                f"QEMU does not greet on {self.path}: it serves one client at a time",
                hint="let the other client go, or give QEMU one more -qmp socket",
            ) from error
        except (QMPError, OSError, EOFError, ValueError) as error:  # ValueError: a NUL
            raise unreachable(self.path, error) from error

    def _run(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        import asyncio

        return self._loop.run_until_complete(asyncio.wait_for(work, seconds))


def _connected(path: str) -> socket.socket:
    """A socket that QEMU will accept; while its queue, of one, is full, it is tried again.

    asyncio would take that (EAGAIN, connect(2)) for a connection that is under way.

    :raises TimeoutError: the queue stays full.
    """
    deadline = time.monotonic() + _GREETING_PATIENCE
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        while True:
            try:
                connection.connect(path)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError from error
                time.sleep(0.02)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def unreachable(path: str, error: Exception) -> MemoryAccessError | NoSuchTargetError:
    """What to raise when a QMP socket cannot be connected to."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    if isinstance(cause, FileNotFoundError):
        return NoSuchTargetError(f"there is no QMP socket {path}")
    if isinstance(cause, PermissionError):
        return AccessDeniedError(
            f"the QMP socket {path} may not be opened", hint="run as root, or as QEMU's user"
        )
    return MemoryAccessError(
        f"no QEMU answers on {path}: {str(error).partition(chr(10))[0]}",
        hint="it takes a socket made by `-qmp unix:PATH,server=on,wait=off`",
    )
