"""The gdb stub of an unmodified, running QEMU, opened for as long as it is needed.

QEMU is given one end of a pair of connected sockets (``getfd``, ``chardev-add``), and its human
monitor's ``gdbserver`` command opens the stub on it: no file, no port, nobody else can connect.
``gdbserver none`` closes it and removes the character device with it. A stub that comes stops
the guest (``gdb_chr_event`` in gdbstub.c), so the guest is stopped before, by those who will let
it go on.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Mapping
from typing import Any

from virtintrospect.errors import MemoryAccessError, NoSuchTargetError, TargetGoneError, UsageError
from virtintrospect_kvm import gdbxml
from virtintrospect_kvm.qmp import Monitor
from virtintrospect_kvm.rsp import StubError, Wire

_log = logging.getLogger(__name__)

#: Our character device; QEMU calls that of a stub which somebody else opened ``gdb``.
_LABEL, _FOREIGN = "virtintrospect-gdb", "gdb"
#: Bytes of a description that are asked for at once, and of memory: two characters each must
#: fit QEMU's packets of 4 KiB (MAX_PACKET_LENGTH).
_CHUNK, READ_CHUNK, WRITE_CHUNK = 2000, 2048, 1024
#: Pieces of one file of a description.
_MOST_CHUNKS = 4096
#: More vCPUs than any machine has.
_MOST_VCPUS = 8192


class _NotSetError(MemoryAccessError):
    """A register has not taken its value."""


class GdbStub:
    """A conversation with a stub; the guest must stand still.

    :param monitor: that of the guest's QEMU; not closed with this.
    :param name: of the guest, for messages.
    :raises MemoryAccessError: QEMU opens no stub, or somebody else has one open.
    """

    def __init__(self, monitor: Monitor, name: str) -> None:
        self._monitor = monitor
        self._name = name
        self._wire: Wire | None = None
        make_room(monitor, name)
        ours, theirs = socket.socketpair()
        self._wire = Wire(ours)
        try:
            with theirs:
                _plug(monitor, theirs)
            _open(monitor, name)
            self._wire.ask(b"qSupported:xmlRegisters=i386")
            #: The registers that the vCPUs have.
            self.description = gdbxml.describe(self._file)
            self._threads = self._list_threads()
        except BaseException:
            self.close()
            raise

    @property
    def vcpus(self) -> int:
        """How many vCPUs there are."""
        return len(self._threads)

    def registers(self, vcpu: int) -> dict[str, int]:
        """All registers of a vCPU that are numbers of at most 64 bits, by their names.

        :raises NoSuchTargetError: there is no vCPU of that number.
        """
        self._select(vcpu)
        found = {}
        for register in self.description.registers:
            value = self._register(register)
            if value is not None:
                found[register.name] = value
        return found

    def set_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Set registers of a vCPU, and make sure by reading them back; all of them, or none.

        :raises NoSuchTargetError: there is no vCPU of that number.
        :raises UsageError: there is no such register, or a value does not fit.
        :raises MemoryAccessError: a register has not taken its value.
        """
        known = {register.name: register for register in self.description.registers}
        for name, value in values.items():
            if name not in known:
                raise UsageError(
                    f"there is no register {name!r} that can be set",
                    hint=f"there are: {', '.join(list(known)[:40])}",
                )
            if not 0 <= value < 1 << (8 * known[name].size):
                raise UsageError(f"{name} has {8 * known[name].size} bits: {value:#x} does not fit")
        self._select(vcpu)
        before = {name: self._register(known[name]) for name in values}
        try:
            for name, value in values.items():
                self._set_register(known[name], value)
        except (StubError, _NotSetError):
            for name, old in before.items():
                if old is not None:
                    self._set_register(known[name], old)
            raise

    def read(self, paddr: int, size: int) -> bytes:
        """Guest-physical RAM; the range must be one: QEMU would also read devices."""
        self._physical()
        parts = []
        while size > 0:
            step = min(size, READ_CHUNK)
            data = _unhex(self._ask(b"m%x,%x" % (paddr, step)))
            if len(data) != step:
                raise MemoryAccessError(
                    f"QEMU's gdb stub gives {len(data)} bytes where {step} were asked for"
                )
            parts.append(data)
            paddr += step
            size -= step
        return b"".join(parts)

    def write(self, paddr: int, data: bytes) -> None:
        """Write guest-physical RAM; the range must be one: QEMU would also write to devices."""
        self._physical()
        for at in range(0, len(data), WRITE_CHUNK):
            piece = data[at : at + WRITE_CHUNK]
            self._do(b"M%x,%x:%s" % (paddr + at, len(piece), piece.hex().encode()))

    def close(self) -> None:
        """Close the stub, the guest standing as before; closing twice is harmless.

        What goes wrong then is logged: there may be an error under way already.
        """
        wire, self._wire = self._wire, None
        if wire is None:
            return
        try:
            close_stub(self._monitor)
        except TargetGoneError:
            pass
        except MemoryAccessError as error:
            if not wire.gone:
                _log.warning("the gdb stub of %r may still be open: %s", self._name, error)
        finally:
            wire.close()

    def _list_threads(self) -> list[bytes]:
        """Ids of the vCPUs, in their order."""
        found: list[bytes] = []
        answer = self._ask(b"qfThreadInfo")
        while answer.startswith(b"m") and len(found) < _MOST_VCPUS:
            found += [part for part in answer[1:].split(b",") if part]
            answer = self._ask(b"qsThreadInfo")
        if not found:
            raise MemoryAccessError("QEMU's gdb stub names no vCPUs")
        return found

    def _file(self, name: str) -> bytes:
        """A file of the description."""
        parts = bytearray()
        for _ in range(_MOST_CHUNKS):
            request = b"qXfer:features:read:%s:%x,%x" % (
                name.encode("ascii", "replace"), len(parts), _CHUNK,
            )  # fmt: skip
            answer = self._ask(request)
            parts += answer[1:]
            if answer[:1] == b"l":
                return bytes(parts)
            if answer[:1] != b"m" or len(answer) == 1 or len(parts) > gdbxml.MOST:
                break
        raise MemoryAccessError("QEMU's gdb stub describes itself without end")

    def _select(self, vcpu: int) -> None:
        if not 0 <= vcpu < len(self._threads):
            raise NoSuchTargetError(
                f"there is no vCPU {vcpu}", hint=f"they are numbered 0 to {self.vcpus - 1}"
            )
        self._do(b"Hg" + self._threads[vcpu])

    def _register(self, register: gdbxml.Register) -> int | None:
        """A register's value; ``None`` where the stub has none."""
        try:
            answer = self._ask(b"p%x" % register.number)
        except StubError:
            return None
        if b"x" in answer:  # not available
            return None
        data = _unhex(answer)
        return int.from_bytes(data, self._order) if len(data) == register.size else None

    def _set_register(self, register: gdbxml.Register, value: int) -> None:
        """Set a register, and make sure by reading it back."""
        digits = value.to_bytes(register.size, self._order).hex().encode()
        self._do(b"P%x=%s" % (register.number, digits))
        found = self._register(register)
        if found != value:
            shown = "nothing" if found is None else f"{found:#x}"
            raise _NotSetError(
                f"register {register.name} was set to {value:#x}, {shown} is read back",
                hint="the processor or QEMU does not let every bit be set; it has its value again",
            )

    @property
    def _order(self) -> Any:
        return self.description.order

    def _physical(self) -> None:
        """Addresses are guest-physical from here on (QEMU 4.1)."""
        self._do(b"Qqemu.PhyMemMode:1")

    def _do(self, request: bytes) -> None:
        if self._ask(request) != b"OK":
            raise StubError(request, None)

    def _ask(self, request: bytes) -> bytes:
        if self._wire is None:
            raise MemoryAccessError("the gdb stub is closed")
        return self._wire.ask(request)


def make_room(monitor: Monitor, name: str) -> None:
    """Make sure that nobody else uses the stub: QEMU has one, and gives it to who asks last.

    :raises MemoryAccessError: somebody does.
    """
    devices = monitor.command("query-chardev")
    for device in devices if isinstance(devices, list) else ():
        label = device.get("label") if isinstance(device, dict) else None
        if label == _LABEL and str(device.get("filename")).startswith("disconnected:"):
            _log.info("closing a gdb stub that was left open")
            close_stub(monitor)
        elif label in (_LABEL, _FOREIGN):
            raise MemoryAccessError(
                f"the gdb stub of {name!r} is open already: somebody debugs this guest",
                hint="wait until they have done; or close it: "
                "virsh qemu-monitor-command DOMAIN --hmp gdbserver none",
            )


def close_stub(monitor: Monitor) -> None:
    """Close the stub, and remove what :class:`GdbStub` has plugged in."""
    monitor.human("gdbserver none")
    with contextlib.suppress(MemoryAccessError):  # gone with the stub
        monitor.command("chardev-remove", {"id": _LABEL})


def _plug(monitor: Monitor, end: socket.socket) -> None:
    """Give QEMU one end of the pair, as a character device."""
    monitor.command("getfd", {"fdname": _LABEL}, files=[end.fileno()])
    address = {"type": "fd", "data": {"str": _LABEL}}
    try:
        monitor.command(
            "chardev-add",
            {
                "id": _LABEL,
                "backend": {"type": "socket", "data": {"addr": address, "server": False}},
            },
        )
    except BaseException:
        with contextlib.suppress(MemoryAccessError):
            monitor.command("closefd", {"fdname": _LABEL})
        raise


def _open(monitor: Monitor, name: str) -> None:
    said = monitor.human(f"gdbserver chardev:{_LABEL}")
    if "Waiting for gdb connection" not in said:
        raise MemoryAccessError(
            f"QEMU opens no gdb stub for {name!r}: {said.strip()[:200]}",
            hint="its accelerator must support debugging: KVM and TCG do",
        )


def _unhex(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError as error:
        raise MemoryAccessError("QEMU's gdb stub answers with what is no hexadecimal") from error
