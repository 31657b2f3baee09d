"""Netlink messages, made and taken apart: the kernel's own word about routes and the like.

``guest/netlink.c`` carries them; what they mean is in include/uapi/linux/{netlink,rtnetlink}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .lab.guest import Guest

#: NLM_F_*.
REQUEST, ACK, DUMP, CREATE, EXCL, APPEND = 0x1, 0x4, 0x300, 0x400, 0x200, 0x800
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("<IHHII")


class Message(NamedTuple):
    """One message."""

    type: int
    body: bytes


def install(guest: Guest) -> None:
    """Put the program that carries messages into a guest."""
    guest.install("netlink", "/tmp/netlink")


def ask(guest: Guest, requests: list[bytes], *, protocol: int = 0, pid: int = 1) -> list[Message]:
    """Send requests in the network namespace of a process; all that came back, errors raised."""
    guest.put("/tmp/request", b"".join(requests))
    said = guest.run(f"nsenter -t {pid} -n /tmp/netlink {protocol} < /tmp/request", timeout=180)
    found = []
    position = 0
    while position < len(said):
        length, kind, *_ = _HEADER.unpack_from(said, position)
        body = said[position + 16 : position + length]
        if kind == _ERROR:
            code = struct.unpack_from("<i", body)[0]
            assert code == 0, f"netlink: error {code}"
        elif kind != _DONE:
            found.append(Message(kind, body))
        position += (length + 3) & ~3
    return found


def names(guest: Guest, pid: int | str = 1) -> dict[int, bytes]:
    """Interfaces of a process's network namespace, by index."""
    listed = guest.run(f"nsenter -t {pid} -n ip -o link").splitlines()
    return {
        int(line.split(b":")[0]): line.split()[1].split(b"@")[0].rstrip(b":") for line in listed
    }


def request(kind: int, body: bytes, *attributes: bytes, flags: int = ACK) -> bytes:
    """A message to send."""
    content = body + b"".join(attributes)
    return _HEADER.pack(16 + len(content), kind, REQUEST | flags, 0, 0) + content


def attribute(kind: int, data: bytes) -> bytes:
    """An attribute; nested ones have others as data."""
    return struct.pack("<HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute with a 32-bit number."""
    return attribute(kind, struct.pack("<I", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a body, behind its own structure."""
    return dict(_each(data))


def _each(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(data):
        length, kind = struct.unpack_from("<HH", data, position)
        assert length >= 4
        yield kind & 0x3FFF, data[position + 4 : position + length]
        position += (length + 3) & ~3
