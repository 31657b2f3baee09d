"""A gdb stub and a monitor made by hand: for answers that no real QEMU gives."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from virtintrospect_kvm.qmp import Monitor, MonitorError

TARGET = (
    b'<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
    b'<architecture>i386:x86-64</architecture><xi:include href="core.xml"/></target>'
)
CORE = (
    b'<feature name="core"><reg name="rax" bitsize="64" type="int64" regnum="0"/>'
    b'<reg name="eflags" bitsize="32" type="i386_eflags"/>'
    b'<reg name="st0" bitsize="80" type="i387_ext"/>'
    b'<reg name="k_gs_base" bitsize="64"/></feature>'
)


def packet(data: bytes) -> bytes:
    return b"$%s#%02x" % (data, sum(data) & 0xFF)


def serve(end: socket.socket, answer: Callable[[bytes], bytes | None]) -> threading.Thread:
    """Speak the protocol over one end of a pair of sockets, in a thread.

    :param answer: gives the answer's data for a request's; ``None`` hangs up.
    """

    def run() -> None:
        buffer = b""
        with end, contextlib.suppress(OSError):
            while data := end.recv(4096):
                buffer += data
                while match := re.search(rb"\$([^#]*)#(..)", buffer, re.DOTALL):
                    buffer = buffer[match.end() :]
                    reply = answer(match[1])
                    if reply is None:
                        return
                    end.sendall(b"+" + packet(reply))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


class FakeMachine:
    """What a small x86 machine with two vCPUs answers."""

    def __init__(self) -> None:
        self.registers = {0: bytes(8), 1: b"\2\0\0\0", 3: bytes(8)}
        self.memory = bytearray(1 << 16)
        self.special: dict[bytes, bytes | None] = {}

    def __call__(self, request: bytes) -> bytes | None:
        for start, reply in self.special.items():
            if request.startswith(start):
                return reply
        if request.startswith(b"qXfer:features:read:"):
            _, _, _, name, place = request.split(b":")
            at, size = (int(number, 16) for number in place.split(b","))
            content = {b"target.xml": TARGET, b"core.xml": CORE}[name]
            part = content[at : at + min(size, 50)]
            return (b"m" if at + len(part) < len(content) else b"l") + part
        if request == b"qfThreadInfo":
            return b"m01,02"
        if request == b"qsThreadInfo":
            return b"l"
        if request.startswith((b"Hg", b"Qqemu.PhyMemMode:1", b"qSupported")):
            return b"OK"
        if request.startswith(b"p"):
            return self.registers.get(int(request[1:], 16), b"").hex().encode() or b"E14"
        if request.startswith(b"P"):
            number, value = request[1:].split(b"=")
            self.registers[int(number, 16)] = bytes.fromhex(value.decode())
            return b"OK"
        if request.startswith(b"m"):
            at, size = (int(number, 16) for number in request[1:].split(b","))
            return self.memory[at : at + size].hex().encode()
        if request.startswith(b"M"):
            place, digits = request[1:].split(b":")
            at = int(place.split(b",")[0], 16)
            data = bytes.fromhex(digits.decode())
            self.memory[at : at + len(data)] = data
            return b"OK"
        return b""


class FakeMonitor(Monitor):
    """A monitor whose ``gdbserver`` command opens a fake stub on the socket it was given."""

    def __init__(self, machine: Callable[[bytes], bytes | None]) -> None:
        self.machine = machine
        self.commands: list[str] = []
        self.chardevs: list[dict[str, Any]] = []
        self.says = "Waiting for gdb connection on device 'chardev:x'\r\n"
        self.refused: set[str] = set()
        self._end: socket.socket | None = None

    def command(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, files: Sequence[int] = ()
    ) -> Any:
        line = (arguments or {}).get("command-line", "")
        self.commands.append(line or name)
        if name in self.refused:
            raise MonitorError(name, "GenericError", "refused")
        if name == "query-chardev":
            return self.chardevs
        if name == "getfd":
            self._end = socket.socket(fileno=socket.dup(files[0]))
        if line.startswith("gdbserver chardev:"):
            assert self._end is not None
            serve(self._end, self.machine)
            return self.says
        return ""

    def close(self) -> None:
        pass
