"""Listening sockets that may be there, as the user names them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from virtintrospect.errors import NoSuchTargetError, UsageError

_FORM = re.compile(r"([a-z0-9-]{1,16}):(?:(\[[0-9a-fA-F:.]{2,45}\]|[0-9.]{7,15}):)?(\S+)")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_LAST_PORT = 0xFFFF
#: More is no list of sockets.
_LARGEST_FILE = 1 << 20


class Allowed(NamedTuple):
    """Some ports of a protocol, perhaps on one address only."""

    protocol: str
    address: str
    first: int
    last: int

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        middle = f"{address}:" if address else ""
        return f"{self.protocol}:{middle}{self.first}-{self.last}"

    def fits(self, protocol: str, address: str, port: int) -> bool:
        """Whether a socket is among these."""
        return (
            self.protocol == protocol
            and self.address in ("", address)
            and self.first <= port <= self.last
        )


def allowed(text: str) -> Allowed:
    """What ``tcp:22``, ``udp:[::1]:323``, ``tcp:8000-8010`` and ``tcp:*`` mean.

    :raises UsageError: it is none of that, or no socket can be so.
    """
    match = _FORM.fullmatch(text)
    ports = _PORTS.fullmatch(match[3]) if match else None
    if match is None or (ports is None and match[3] != "*"):
        raise _no_socket(text)
    first = int(ports[1]) if ports else 0
    last = int(ports[2] or ports[1]) if ports else _LAST_PORT
    if not first <= last <= _LAST_PORT:
        raise _no_socket(text)
    try:
        return Allowed(match[1], _address(match[2] or ""), first, last)
    except OSError as error:
        raise _no_socket(text) from error


def _address(text: str) -> str:
    """An address as sockets have it: ``::1`` for ``[0:0::1]``.

    :raises OSError: it is none.
    """
    family = socket.AF_INET6 if text.startswith("[") else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, text.strip("[]"))) if text else ""


def _no_socket(text: str) -> UsageError:
    return UsageError(
        f"{text!r} names no listening socket",
        hint="write tcp:22, udp:127.0.0.1:323, tcp:8000-8010, tcp:*, or the path of a file",
    )


def read_allowed(items: Iterable[str]) -> tuple[Allowed, ...]:
    """Sockets, and files that name some: one a line, ``#`` begins a comment.

    :raises UsageError: an item is neither, or a file is too large.
    :raises NoSuchTargetError: a file cannot be read.
    """
    found: list[Allowed] = []
    for item in items:
        path = Path(item)
        if "/" not in item and not path.is_file():
            found.append(allowed(item))
            continue
        try:
            with path.open(encoding="utf-8", errors="backslashreplace") as file:
                text = file.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise NoSuchTargetError(f"cannot read {item}: {error.strerror}") from error
        if len(text) > _LARGEST_FILE:
            raise UsageError(f"{item} is too large for a list of sockets")
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        found += [allowed(line) for line in lines if line]
    return tuple(found)
