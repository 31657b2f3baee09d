"""The gdb stub's client against answers made by hand: wrong, late, endless, hostile."""

from __future__ import annotations

import socket
import threading

import pytest
from virtintrospect_kvm import gdbxml, rsp
from virtintrospect_kvm.gdbstub import GdbStub
from virtintrospect_kvm.rsp import StubError, Wire

from tests.descriptors import descriptors
from virtintrospect.errors import (
    MemoryAccessError,
    NoSuchTargetError,
    TargetGoneError,
    UsageError,
    VirtIntrospectError,
)

from .stub import CORE, TARGET, FakeMachine, FakeMonitor, packet


def say(*pieces: bytes, hang_up: bool = True) -> Wire:
    """A wire on which these bytes come, whatever is asked."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        for piece in pieces:
            theirs.sendall(piece)
        if hang_up:
            theirs.shutdown(socket.SHUT_WR)
        while theirs.recv(4096):
            pass
        theirs.close()

    threading.Thread(target=run, daemon=True).start()
    return Wire(ours)


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ((b"+" + packet(b"OK"),), b"OK"),
        ((b"+$O", b"K#9", b"a"), b"OK"),  # in pieces
        ((b"+" + packet(b"a}\x03b"),), b"a#b"),  # escaped
        ((b"+" + packet(b"0* "),), b"0000"),  # three more of them
        ((packet(b"T05thread:01;") + b"+" + packet(b"OK"),), b"OK"),  # told unasked
        ((b"-+" + packet(b"OK"),), b"OK"),  # wants the request once more
        ((b"+$OK#00" + packet(b"OK"),), b"OK"),  # a wrong sum, then the right one
    ],
)
def test_what_comes_over_the_wire(sent: tuple[bytes, ...], found: bytes) -> None:
    wire = say(*sent)
    assert wire.ask(b"?") == found
    wire.close()
    wire.close()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ((), TargetGoneError),
        ((b"+",), TargetGoneError),
        ((b"+$OK#",), TargetGoneError),
        ((b"+" + packet(b""),), StubError),
        ((b"+" + packet(b"E14"),), StubError),
        ((b"---",), MemoryAccessError),
        ((b"+$OK#00$OK#00$OK#zz",), MemoryAccessError),
        ((b"+$" + bytes([65]) * (rsp.MOST + 8192),), MemoryAccessError),
        ((b"+" + packet(b"A*~" * 1000),), MemoryAccessError),  # 98 times as much comes out
        ((b"x" * 1000,), TargetGoneError),
    ],
)
def test_what_makes_no_sense_is_told(
    sent: tuple[bytes, ...], error: type[VirtIntrospectError]
) -> None:
    wire = say(*sent)
    with pytest.raises(error):
        wire.ask(b"?")
    wire.close()


def test_a_stub_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsp, "PATIENCE", 0.2)
    wire = say(b"+", hang_up=False)
    with pytest.raises(MemoryAccessError, match="does not answer"):
        wire.ask(b"?")
    wire.close()
    with pytest.raises(TargetGoneError):
        wire.ask(b"?")


def test_registers_and_memory() -> None:
    machine = FakeMachine()
    before = descriptors()
    stub = GdbStub(FakeMonitor(machine), "web01")
    assert stub.vcpus == 2
    assert stub.registers(1) == {"rax": 0, "rflags": 2, "kernel_gs_base": 0}
    stub.set_registers(0, {"rax": 0x1122, "rflags": 0x246})
    assert stub.registers(0) == {"rax": 0x1122, "rflags": 0x246, "kernel_gs_base": 0}
    data = bytes(range(256)) * 20
    stub.write(0x123, data)
    assert stub.read(0x123, len(data)) == data
    stub.close()
    stub.close()
    with pytest.raises(MemoryAccessError, match="closed"):
        stub.registers(0)
    for _ in range(100):
        if not descriptors() - before:
            break
        threading.Event().wait(0.02)
    assert descriptors() - before == set()


def test_bad_requests() -> None:
    stub = GdbStub(FakeMonitor(FakeMachine()), "web01")
    with pytest.raises(NoSuchTargetError):
        stub.registers(2)
    with pytest.raises(UsageError, match="no register 'st0'"):
        stub.set_registers(0, {"st0": 1})
    with pytest.raises(UsageError, match="32 bits"):
        stub.set_registers(0, {"rflags": 1 << 32})
    stub.close()


def test_registers_that_do_not_take_are_put_back() -> None:
    machine = FakeMachine()
    stub = GdbStub(FakeMonitor(machine), "web01")
    machine.special[b"P3="] = b"OK"  # it says so, and does nothing
    with pytest.raises(MemoryAccessError, match="kernel_gs_base"):
        stub.set_registers(0, {"rax": 7, "kernel_gs_base": 9})
    assert stub.registers(0)["rax"] == 0
    stub.close()


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        (b"qfThreadInfo", b"l"),
        (b"qsThreadInfo", b"E01"),
        (b"qXfer:features:read:target.xml:0", b"l"),
        (b"qXfer:features:read:target.xml", b"m"),
        (b"qXfer:features:read:target.xml", b"m<target>"),  # again and again, without end
        (b"qXfer:features:read:target.xml", b"l<!DOCTYPE a [<!ENTITY b 'c'>]><target/>"),
        (b"qXfer:features:read:target.xml", b"l<target"),
        (b"qXfer:features:read:target.xml", b"l<target><architecture>vax</architecture></target>"),
        (b"qXfer:features:read:core.xml", b"l<feature/>"),
        (b"qXfer:features:read:core.xml", b"l<feature><reg regnum='-1' bitsize='64'/></feature>"),
        (b"qXfer", None),
    ],
)
def test_stubs_that_make_no_sense_are_closed_again(asked: bytes, reply: bytes | None) -> None:
    machine = FakeMachine()
    machine.special[asked] = reply
    monitor = FakeMonitor(machine)
    with pytest.raises(MemoryAccessError):
        GdbStub(monitor, "web01")
    assert "gdbserver none" in monitor.commands


def test_registers_without_a_value_are_left_out() -> None:
    machine = FakeMachine()
    machine.special |= {b"p0": b"xxxxxxxxxxxxxxxx", b"p1": b"E00", b"p3": b"00"}
    stub = GdbStub(FakeMonitor(machine), "web01")
    assert stub.registers(0) == {}
    machine.special = {b"m": b"00"}
    with pytest.raises(MemoryAccessError, match="1 bytes where 8"):
        stub.read(0, 8)
    machine.special = {b"m": b"zz"}
    with pytest.raises(MemoryAccessError, match="hexadecimal"):
        stub.read(0, 8)
    stub.close()


def test_a_stub_that_somebody_else_uses_is_left_alone() -> None:
    monitor = FakeMonitor(FakeMachine())
    monitor.chardevs = [{"label": "gdb", "filename": "disconnected:tcp:127.0.0.1:1234,server=on"}]
    with pytest.raises(MemoryAccessError, match="somebody debugs"):
        GdbStub(monitor, "web01")
    assert monitor.commands == ["query-chardev"]
    monitor.chardevs = [{"label": "virtintrospect-gdb", "filename": "unix:socket"}]
    with pytest.raises(MemoryAccessError, match="somebody debugs"):
        GdbStub(monitor, "web01")


def test_a_stub_that_was_left_behind_is_replaced() -> None:
    monitor = FakeMonitor(FakeMachine())
    monitor.chardevs = [{"label": "virtintrospect-gdb", "filename": "disconnected:unix:"}]
    stub = GdbStub(monitor, "web01")
    assert monitor.commands[1] == "gdbserver none"
    stub.close()


def test_qemu_that_opens_no_stub() -> None:
    monitor = FakeMonitor(FakeMachine())
    monitor.says = "gdbstub: current accelerator doesn't support guest debugging\r\n"
    with pytest.raises(MemoryAccessError, match="doesn't support guest debugging"):
        GdbStub(monitor, "web01")
    for command in ("getfd", "chardev-add"):
        monitor = FakeMonitor(FakeMachine())
        monitor.refused = {command}
        with pytest.raises(MemoryAccessError, match=command):
            GdbStub(monitor, "web01")
        assert ("closefd" in monitor.commands) == (command == "chardev-add")


def test_numbers_of_registers_go_on_where_none_is_given() -> None:
    files = {
        "target.xml": TARGET.replace(b"core.xml", b"a.xml").replace(
            b"</target>", b'<xi:include href="b.xml"/></target>'
        ),
        "a.xml": CORE,
        "b.xml": b'<feature name="b"><reg name="CR0" bitsize="64"/>'
        b'<reg name="xmm0" bitsize="128" regnum="60"/><reg name="cr2" bitsize="64"/></feature>',
    }
    found = gdbxml.describe(files.__getitem__)
    assert [(r.name, r.number, r.size) for r in found.registers] == [
        ("rax", 0, 8), ("rflags", 1, 4), ("kernel_gs_base", 3, 8), ("cr0", 4, 8), ("cr2", 61, 8),
    ]  # fmt: skip
    assert found.order == "little"
    endless = TARGET.replace(b'<xi:include href="core.xml"/>', b'<xi:include href="b.xml"/>' * 100)
    with pytest.raises(MemoryAccessError, match="without end"):
        gdbxml.describe(lambda name: endless if name == "target.xml" else files[name])
    many = b"<feature>" + b'<reg name="a" bitsize="64"/>' * 9000 + b"</feature>"
    with pytest.raises(MemoryAccessError, match="without end"):
        gdbxml.describe(lambda name: TARGET if name == "target.xml" else many)
