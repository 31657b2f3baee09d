"""The socket: who may ask, one line a question, and nobody can keep the daemon busy.

docs/operations.md describes the protocol. What a client sends is checked here for form and
size; what it asks is the business of :mod:`~virtintrospect.daemon.api`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from virtintrospect import __version__
from virtintrospect.cli.escape import printable
from virtintrospect.client import PROTOCOL
from virtintrospect.daemon.access import Access, peer
from virtintrospect.daemon.config import Socket
from virtintrospect.daemon.log import event
from virtintrospect.errors import VirtIntrospectError

_log = logging.getLogger(__name__)

#: Bytes of one question.
MAX_LINE = 64 << 10
#: Bytes that wait for a client to read them, before the daemon waits too.
_HIGH_WATER = 1 << 20
#: Seconds for which a user who is refused is not logged again: the journal drops lines of a unit
#: that writes too many, and with them those of others.
_QUIET = 60.0
_MOST_REFUSED = 1024
#: Connections that wait to be accepted.
_BACKLOG = 512

#: Answers a question: yields messages, the last of which has ``"done": true``.
Handler = Callable[[str, dict[str, Any]], AsyncIterator[dict[str, Any]]]


class RequestError(VirtIntrospectError):
    """A question that cannot be answered.

    :param kind: for programs; only ``guest`` tells of the guest itself.
    """

    def __init__(self, kind: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.exit_code = {"unknown-domain": 3, "denied": 4, "not-ready": 4}.get(kind, 1)


class Server:
    """Listens, and answers by ``handler``."""

    def __init__(self, path: Path, config: Socket, handler: Handler) -> None:
        self.path = path
        self.config = config
        self.access = Access(config.users, config.groups)
        self.handler = handler
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        #: Users who were refused: until when that is not logged again.
        self._quiet: dict[int, float] = {}

    async def start(self) -> None:
        """Listen; a socket that a killed daemon left is replaced."""
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(str(self.path))
        os.chmod(self.path, 0o666)  # noqa: S103, PTH101 (SO_PEERCRED decides who may ask)
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listener, limit=MAX_LINE, backlog=_BACKLOG
        )

    async def close(self) -> None:
        """Listen no more, and hang up on everybody."""
        self.path.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid, uid, gid = peer(writer.get_extra_info("socket"))
        error = None
        if not self.access.allows(uid, gid):
            self._refused(pid, uid, gid)
            error = RequestError(
                "denied",
                f"virt-introspectd does not answer user {uid}: reading a guest's memory is being "
                "root in it",
                hint="socket.users and socket.groups of /etc/virtintrospect/config.toml allow more",
            )
        elif len(self._connections) >= self.config.connections:
            error = RequestError("busy", "virt-introspectd has too many connections")
        if error is not None:
            with contextlib.suppress(OSError):
                writer.write(_line(_error_message(None, error)))
            writer.close()
            return
        task = asyncio.create_task(self._talk(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    def _refused(self, pid: int, uid: int, gid: int) -> None:
        """Log it, once in a while for each user."""
        now = time.monotonic()
        if now < self._quiet.get(uid, 0.0):
            return
        if len(self._quiet) >= _MOST_REFUSED:
            self._quiet.clear()
        self._quiet[uid] = now + _QUIET
        event(_log, logging.WARNING, "refused", pid=pid, uid=uid, gid=gid)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=_HIGH_WATER)
        greeting = {"daemon": "virt-introspectd", "version": __version__, "protocol": PROTOCOL}
        try:
            await self._send(writer, greeting)
            while (line := await self._question(reader)) is not None:
                await self._answer(line, writer)
        except RequestError as error:  # after which nothing of this client can be understood
            with contextlib.suppress(OSError, TimeoutError):
                await self._send(writer, _error_message(None, error))
        except (OSError, TimeoutError):
            pass  # it hung up, said nothing for too long, or does not read
        finally:
            # What a slow reader has not taken yet is dropped.
            if writer.transport.get_write_buffer_size() > 0:
                writer.transport.abort()
            writer.close()

    async def _question(self, reader: asyncio.StreamReader) -> bytes | None:
        """The next line; ``None`` when there are no more."""
        try:
            async with asyncio.timeout(self.config.idle_seconds):
                line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            raise RequestError("bad-request", f"a line is longer than {MAX_LINE} bytes") from None
        return line

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        number: Any = None
        try:
            number, method, params = _parse(line)
            async for message in self.handler(method, params):
                await self._send(writer, {"id": number} | message)
        except VirtIntrospectError as error:
            await self._send(writer, _error_message(number, error))

    async def _send(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        writer.write(_line(message))
        async with asyncio.timeout(self.config.write_seconds):
            await writer.drain()


def _parse(line: bytes) -> tuple[int | str | None, str, dict[str, Any]]:
    try:
        question = json.loads(line)
    except (ValueError, RecursionError):
        raise RequestError("bad-request", "a line that is no JSON") from None
    if not isinstance(question, dict):
        raise RequestError("bad-request", "a question is a JSON object")
    number, method = question.get("id"), question.get("method")
    params = question.get("params", {})
    if not (number is None or (isinstance(number, int | str) and len(str(number)) <= 64)):
        raise RequestError("bad-request", "id is a number or a short string")
    if not isinstance(method, str) or not isinstance(params, dict):
        raise RequestError("bad-request", "a question has a method, and params that are an object")
    return number, method, params


def _line(message: dict[str, Any]) -> bytes:
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate, which a client may have sent, becomes JSON's own escape of it.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _error_message(number: Any, error: VirtIntrospectError) -> dict[str, Any]:
    causes: list[str] = []
    cause = error.__cause__
    while cause is not None and len(causes) < 16:
        causes.append(printable(str(cause)))
        cause = cause.__cause__
    told = {
        "kind": error.kind if isinstance(error, RequestError) else "guest",
        "type": type(error).__name__,
        "message": printable(error.message),
        "hint": printable(error.hint),
        "exit_code": error.exit_code,
        "because": causes,
    }
    return {"id": number, "error": {key: value for key, value in told.items() if value != ""}}
