"""The wire of a gdb stub: packets of GDB's remote serial protocol, each answered by one.

Source: "Overview" and "Packets" of GDB's remote protocol in its manual; what QEMU speaks of it
is in gdbstub.c (QEMU 7.2). A packet is ``$data#sum``, ``sum`` the bytes' sum modulo 256; the
receiver says ``+``, or ``-`` to have it once more. ``}`` takes the next byte XOR 0x20, ``*``
repeats the byte before it.
"""

from __future__ import annotations

import socket
import time

from virtintrospect.errors import MemoryAccessError, TargetGoneError

#: Most bytes of one packet's data. QEMU's own limit is 4 KiB (MAX_PACKET_LENGTH).
MOST = 1 << 16
#: Seconds that the stub may take for an answer: it is QEMU's main loop that gives it.
PATIENCE = 10.0
#: How often a packet with a wrong sum is asked for, or sent, once more.
_ATTEMPTS = 3

_ESCAPE, _REPEAT = ord("}"), ord("*")


class StubError(MemoryAccessError):
    """The stub refuses a packet, or does not know it.

    :param request: the packet.
    :param code: number of the error; ``None`` where it does not know the packet.
    """

    def __init__(self, request: bytes, code: int | None) -> None:
        shown = request[:40].decode("ascii", "replace")
        said = "does not know" if code is None else f"answers error {code:#x} to"
        super().__init__(f"QEMU's gdb stub {said} {shown!r}")
        self.request = request
        self.code = code


class Wire:
    """Packets to and from a stub.

    :param connection: a connected stream socket; taken over.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._deadline = 0.0
        #: The stub has hung up.
        self.gone = False

    def ask(self, request: bytes) -> bytes:
        """Send a packet and give the data of its answer.

        :raises StubError: the stub refuses it, or does not know it.
        :raises TargetGoneError: the stub has hung up.
        :raises MemoryAccessError: there is no answer in time, or none that makes sense.
        """
        self._deadline = time.monotonic() + PATIENCE
        self._send(request)
        answer = self._receive()
        if not answer:
            raise StubError(request, None)
        if len(answer) == 3 and answer.startswith(b"E"):
            raise StubError(request, _number(answer[1:]))
        return answer

    def close(self) -> None:
        """Hang up; closing twice is harmless."""
        self._socket.close()

    def _send(self, data: bytes) -> None:
        packet = b"$%s#%02x" % (data, sum(data) & 0xFF)
        for _ in range(_ATTEMPTS):
            self._put(packet)
            if self._acknowledged():
                return
        raise MemoryAccessError("QEMU's gdb stub does not take a packet: it finds its sum wrong")

    def _acknowledged(self) -> bool:
        while (byte := self._byte()) not in b"+-":
            if byte == ord("$"):  # told unasked, such as why the guest has stopped
                self._packet()
        return byte == ord("+")

    def _receive(self) -> bytes:
        for _ in range(_ATTEMPTS):
            while self._byte() != ord("$"):
                pass
            data = self._packet()
            if data is not None:
                return _decoded(data)
        raise MemoryAccessError("QEMU's gdb stub answers with wrong sums")

    def _packet(self) -> bytes | None:
        """The rest of a packet, said to have come; ``None`` where its sum is wrong."""
        seen = 0
        while (end := self._buffer.find(b"#", seen)) < 0 or len(self._buffer) < end + 3:
            seen = len(self._buffer) if end < 0 else end
            if seen > MOST:
                raise MemoryAccessError(f"QEMU's gdb stub sends more than {MOST} bytes at once")
            self._more()
        data, digits = bytes(self._buffer[:end]), bytes(self._buffer[end + 1 : end + 3])
        del self._buffer[: end + 3]
        right = _number(digits) == sum(data) & 0xFF
        self._put(b"+" if right else b"-")
        return data if right else None

    def _byte(self) -> int:
        while not self._buffer:
            self._more()
        return self._buffer.pop(0)

    def _more(self) -> None:
        """Wait for bytes."""
        self._wait()
        try:
            data = self._socket.recv(1 << 14)
        except TimeoutError as error:
            raise _silent() from error
        except OSError as error:
            raise self._hung_up(error) from error
        if not data:
            raise self._hung_up(None)
        self._buffer += data

    def _put(self, data: bytes) -> None:
        self._wait()
        try:
            self._socket.sendall(data)
        except TimeoutError as error:
            raise _silent() from error
        except OSError as error:
            raise self._hung_up(error) from error

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise _silent()
        try:
            self._socket.settimeout(left)
        except OSError as error:  # it was closed
            raise self._hung_up(error) from error

    def _hung_up(self, error: OSError | None) -> TargetGoneError:
        self.gone = True
        return TargetGoneError(
            f"QEMU's gdb stub has hung up{f': {error.strerror}' if error else ''}",
            hint="the guest has ended, or somebody else took the stub",
        )


def _number(text: bytes) -> int:
    """A hexadecimal number; -1 where it is none."""
    try:
        return int(text, 16)
    except ValueError:
        return -1


def _decoded(data: bytes) -> bytes:
    """Without escapes and repetitions."""
    if _ESCAPE not in data and _REPEAT not in data:
        return data
    found = bytearray()
    at = 0
    while at < len(data):
        byte, following = data[at], data[at + 1] if at + 1 < len(data) else -1
        if byte == _ESCAPE and following >= 0:
            found.append(following ^ 0x20)
            at += 2
        elif byte == _REPEAT and following >= 32 and found:
            found += found[-1:] * (following - 29)
            at += 2
        else:
            found.append(byte)
            at += 1
        if len(found) > MOST:
            raise MemoryAccessError(f"QEMU's gdb stub sends more than {MOST} bytes at once")
    return bytes(found)


def _silent() -> MemoryAccessError:
    return MemoryAccessError(f"QEMU's gdb stub does not answer within {PATIENCE:.0f} s")
