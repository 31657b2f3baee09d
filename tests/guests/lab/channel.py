"""The channel over which a guest tells the truth: see guest/agent.c for what it speaks."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .truth import Snapshot

#: The end of an answer: a record without a name, status and data.
_END = bytes(16)


class GuestError(Exception):
    """The guest did not do as it was told; the text has the end of its console."""


@dataclass(frozen=True)
class Answer:
    """What a command in the guest printed."""

    status: int
    stdout: bytes
    stderr: bytes


class Channel:
    """Talks to the agent in a guest.

    :param name: how to call the guest in errors.
    :param path: gives the socket that QEMU listens on; asked at each connection.
    :param console: file with what the guest's console printed.
    """

    #: Its virtio network cards, by the names that its kernel gives them.
    cards: frozenset[bytes] = frozenset()
    #: Whether its processor has huge pages.
    huge_pages = True

    def __init__(self, name: str, path: Callable[[], str], console: Path) -> None:
        self.name = name
        self.console = console
        self._path = path
        self._socket: socket.socket | None = None
        self._buffer = b""
        #: A question was given up: its answer may come after the connection was opened anew.
        self._owed = False

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest has booted, its workload is in place, and it answers."""
        self._ask("H", b"", timeout)

    def connect(self, timeout: float = 30) -> None:
        """Open the channel now instead of at the first question."""
        self._connected(time.monotonic() + timeout)

    def run(self, command: str, timeout: float = 120, *, check: bool = True) -> bytes:
        """Run a shell command in the guest; its standard output, byte for byte.

        :raises GuestError: it failed (unless ``check`` is false) or took too long.
        """
        answer = self.execute(command, timeout)
        if check and answer.status:
            raise GuestError(f"{command!r}: status {answer.status}: {answer.stderr!r}")
        return answer.stdout

    def execute(self, command: str, timeout: float = 120) -> Answer:
        """As :meth:`run`, with everything that came back."""
        payload = struct.pack("<I", int(timeout) or 1) + command.encode()
        got = {name: (status, data) for name, status, data in self._ask("R", payload, timeout + 20)}
        return Answer(got[b"status"][0], got[b"stdout"][1], got[b"stderr"][1])

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        payload = struct.pack("<I", mode) + path.encode() + b"\0" + content
        ((_, status, _),) = self._ask("P", payload, 60)
        if status:
            raise GuestError(f"cannot write {path} in the guest: {os.strerror(status)}")

    def get(self, path: str) -> bytes:
        """Read a file of the guest, whole, a /proc file in one pass."""
        ((_, status, content),) = self._ask("G", path.encode(), 60)
        if status:
            raise GuestError(f"cannot read {path} in the guest: {os.strerror(status)}")
        return content

    def snapshot(self) -> Snapshot:
        """The guest's /proc and kernel log at this moment, gathered by one pass in the guest."""
        return Snapshot({name: (status, data) for name, status, data in self._ask("S", b"", 60)})

    def disconnect(self) -> None:
        """Close the channel; the next question opens it again."""
        channel, self._socket = self._socket, None
        self._buffer = b""
        if channel is not None:
            channel.close()

    def _ask(self, op: str, payload: bytes, timeout: float) -> list[tuple[bytes, int, bytes]]:
        deadline = time.monotonic() + timeout
        try:
            if self._owed:
                self._settle(deadline)
            self._send(op, payload, deadline)
            return list(self._records(deadline))
        except BaseException as error:  # a test's time limit, too, ends in the middle of an answer
            self.disconnect()
            self._owed = True
            if not isinstance(error, OSError):
                raise
            raise GuestError(f"{self.name} does not answer: {error!r}\n{self._tail()}") from error

    def _send(self, op: str, payload: bytes, deadline: float) -> None:
        channel = self._connected(deadline)
        channel.settimeout(max(0.1, deadline - time.monotonic()))
        channel.sendall(op.encode() + struct.pack("<I", len(payload)) + payload)

    def _settle(self, deadline: float) -> None:
        """Drop what comes late, up to the answer to a question that nobody asked before."""
        word = os.urandom(16)
        self._send("H", word, deadline)
        came = b""
        while word + _END not in came:
            came = came[-len(word + _END) :] + self._exactly(1, deadline) + self._buffer
            self._buffer = b""
        self._buffer = came.partition(word + _END)[2]
        self._owed = False

    def _records(self, deadline: float) -> Iterator[tuple[bytes, int, bytes]]:
        while True:
            (length,) = struct.unpack("<I", self._exactly(4, deadline))
            name = self._exactly(length, deadline)
            status, size = struct.unpack("<IQ", self._exactly(12, deadline))
            data = self._exactly(size, deadline)
            if not name:
                return
            yield name, status, data

    def _exactly(self, size: int, deadline: float) -> bytes:
        channel = self._connected(deadline)
        chunks = bytearray(self._buffer)
        while len(chunks) < size:
            channel.settimeout(max(0.1, deadline - time.monotonic()))
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
            got = channel.recv(1 << 20)
            if not got:
                raise ConnectionResetError("the guest is gone")
            chunks += got
        self._buffer = bytes(chunks[size:])
        return bytes(chunks[:size])

    def _connected(self, deadline: float) -> socket.socket:
        if self._socket is None:
            fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            fresh.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                fresh.connect(self._path())
            except OSError:
                fresh.close()
                raise
            self._socket = fresh
        return self._socket

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return "console: " + self.console.read_text(errors="backslashreplace")[-2000:]
        return ""
