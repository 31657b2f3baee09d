"""What a QEMU that a guest has broken out into may answer: its monitor, its gdb stub."""

from __future__ import annotations

import contextlib
import socket

from virtintrospect_kvm import cpudump, gdbxml
from virtintrospect_kvm.rsp import Wire

from tests.fuzz.parsers.target import Target
from tests.unit.kvm.stub import CORE, TARGET, packet
from tests.unit.kvm.test_cpudump import LEGACY, LONG
from virtintrospect.errors import VirtIntrospectError


def _registers(data: bytes) -> None:
    cpudump.parse(data.decode("utf-8", "replace"))


def _description(data: bytes) -> None:
    with contextlib.suppress(VirtIntrospectError):
        gdbxml.describe(lambda name: data if name == "target.xml" else CORE)
    gdbxml.describe(lambda name: TARGET if name == "target.xml" else data)


def _wire(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(ours)
    try:
        theirs.sendall(data[: 1 << 15])
        theirs.shutdown(socket.SHUT_WR)
        while True:  # until it has hung up, or makes no sense
            wire.ask(b"?")
    finally:
        wire.close()
        theirs.close()


_ANSWERS = b"+" + packet(b"T05thread:01;") + b"+" + packet(b"0* 1}\x03") + b"-+" + packet(b"E14")

TARGETS = [
    Target("registers of the monitor", lambda: [LONG.encode(), LEGACY.encode()], _registers, 500),
    Target("description of a gdb stub", lambda: [TARGET, CORE], _description, 500),
    Target("answers of a gdb stub", lambda: [_ANSWERS], _wire, 500),
]
