"""The client of ``virt-introspectd``: asks a table of a session that is kept ready.

Whatever is wrong on the way there (no daemon, none that answers in time, one of another
version, no right to ask it) is :exc:`UnavailableError`, within a bounded time; the caller then
opens a session of its own. What went wrong in the guest itself is raised as it was there.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.insight.columns import Table, Unit

DEFAULT_SOCKET = "/run/virtintrospect/daemon.sock"
#: Raised when a client and a daemon of two versions would misunderstand each other.
PROTOCOL = 1

#: Seconds that a daemon may take to greet; and to answer a question, of which `check` alone may
#: take a minute.
_GREETING, _ANSWER = 2.0, 90.0
#: Bytes of one line, and of one answer.
_MAX_LINE, _MAX_ANSWER = 8 << 20, 1 << 30
_UCRED = struct.Struct("3i")


class RemoteError(VirtIntrospectError):
    """An error that the daemon met, told with the exit code that it has there."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class UnavailableError(RemoteError):
    """The daemon cannot answer this; whoever can read the guest by himself should do so."""


class Answer(NamedTuple):
    """Rows of a table, and what could not be made sense of: text and address."""

    rows: list[dict[str, Any]]
    problems: list[tuple[str, int]]


class Client:
    """A connection to the daemon. A context manager.

    :param path: its socket; ``None``: ``$VIRTINTROSPECT_SOCKET``, else the usual place.
    :raises UnavailableError: there is none that would talk to us.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path or os.environ.get("VIRTINTROSPECT_SOCKET") or DEFAULT_SOCKET
        self._buffer = bytearray()
        self._received = 0
        self._deadline = time.monotonic() + _GREETING
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(_GREETING)
            self._socket.connect(self.path)
            self._check_server()
            self._check_greeting(self._message())
        except OSError as error:
            self._socket.close()
            raise self._unavailable(error) from error
        except BaseException:
            self._socket.close()
            raise

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask, and give the last message of the answer, all ``rows`` of it joined.

        :raises UnavailableError: the daemon has no answer.
        :raises RemoteError: the answer is an error.
        """
        self._deadline = time.monotonic() + _ANSWER
        self._received = 0
        question = {"id": 1, "method": method, "params": params}
        rows: list[Any] = []
        try:
            self._socket.settimeout(_ANSWER)
            self._socket.sendall(json.dumps(question).encode() + b"\n")
            while True:
                message = self._message()
                _raise_error(message)
                rows += message.get("rows", [])
                if message.get("done") is True:
                    return message | {"rows": rows}
        except OSError as error:
            raise self._unavailable(error) from error

    def table(self, table: Table, domain: str, uri: str | None, arguments: Any) -> Answer:
        """Rows of a table of a domain's guest, as the library's own records have them."""
        message = self.ask("table", domain=domain, uri=uri, table=table.name, arguments=arguments)
        try:
            problems = [(str(what), int(address, 16)) for what, address in message["problems"]]
            return Answer([decode(table, row) for row in message["rows"]], problems)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_server(self) -> None:
        """Only root's daemon, or our own, is believed."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, _ = _UCRED.unpack(raw)
        if uid not in (0, os.geteuid()):
            raise UnavailableError(f"the daemon at {self.path} is user {uid}'s, not root's")

    def _check_greeting(self, greeting: Mapping[str, Any]) -> None:
        _raise_error(greeting)
        if greeting.get("protocol") != PROTOCOL:
            raise UnavailableError(
                f"the daemon at {self.path} speaks protocol {greeting.get('protocol')!r}, "
                f"not {PROTOCOL}",
                hint="restart virt-introspectd: it is of another version",
            )

    def _message(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no answer in time")
            self._socket.settimeout(left)
            got = self._socket.recv(1 << 20)
            if not got:
                raise ConnectionError("it closed the connection")
            self._buffer += got
            self._received += len(got)
            if len(self._buffer) > _MAX_LINE or self._received > _MAX_ANSWER:
                raise ConnectionError("its answer is too long")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConnectionError("its answer makes no sense") from error
        if not isinstance(message, dict):
            raise ConnectionError("its answer makes no sense")
        return message

    def _unavailable(self, error: Exception) -> UnavailableError:
        absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        what = "does not run" if absent else f"does not answer: {error}"
        return UnavailableError(
            f"virt-introspectd {what} ({self.path})", hint="systemctl start virt-introspectd"
        )


def _raise_error(message: Mapping[str, Any]) -> None:
    error = message.get("error")
    if error is None:
        return
    if not isinstance(error, dict):
        raise UnavailableError("the daemon's answer makes no sense")
    text, hint = str(error.get("message", "")), str(error.get("hint", ""))
    code = error.get("exit_code")
    code = code if isinstance(code, int) else 1
    if error.get("kind") != "guest":
        raise UnavailableError(text, hint=hint, exit_code=code)
    found = RemoteError(text, hint=hint, exit_code=code)
    link: BaseException = found
    for cause in _strings(error.get("because")):
        link.__cause__ = VirtIntrospectError(cause)
        link = link.__cause__
    raise found


def _strings(values: Any) -> Iterator[str]:
    yield from (map(str, values[:16]) if isinstance(values, list) else ())


def decode(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the library has it, from the one that programs get (``-o json``)."""
    units = {column.name: column.unit for column in table.columns}
    return {name: _value(units[name], value) for name, value in row.items() if name in units}


def _value(unit: Unit, value: Any) -> Any:
    if unit in (Unit.ADDRESS, Unit.MASK):
        return int(value, 16)
    return bytes.fromhex(value) if unit is Unit.HEX else value
