"""ARM's unwinding tables: which instructions undo what a function did to the stack.

Two words for each function, in order of addresses (``struct unwind_idx``): where it begins, and
its instructions, or where they are. Source: Exception Handling ABI for the Arm Architecture
(IHI 0038), sections 6 and 10.3; arch/arm/kernel/unwind.c for what kernels use of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import FaultError, NotFoundError
from virtintrospect.guests.linux.unwind import Broken

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

SP, LR, PC = 13, 14, 15
#: A function that cannot be unwound through: entry code.
_CANNOT = 1
#: No kernel's table is larger, nor are all of its modules' together; Debian's has 300 KiB.
_LARGEST_TABLE, _MOST_READ = 8 << 20, 32 << 20
_WORD = 0xFFFF_FFFF


class _Table(NamedTuple):
    """Code that a table is for, and where the table lies."""

    code: tuple[int, int]
    start: int
    stop: int


class UnwindTables:
    """The tables of the image and of modules, each read when it is first asked for."""

    def __init__(self, guest: LinuxGuest) -> None:
        self._guest = guest
        self._tables = list(_tables(guest))
        self._read: dict[int, tuple[Any, Any]] = {}
        #: Bytes of tables that may still be read, and kept.
        self._left = _MOST_READ

    def instructions(self, address: int) -> bytes | None:
        """Those of the function that an address is in; ``None`` where it is entry code.

        :raises Broken: there are none, or they cannot be read.
        """
        table = next((t for t in self._tables if t.code[0] <= address < t.code[1]), None)
        if table is None:
            raise Broken(f"no unwinding table has {address:#x}")
        try:
            return self._instructions(table, address)
        except FaultError as error:
            raise Broken(f"unreadable unwinding table at {error.address:#x}") from error

    def _instructions(self, table: _Table, address: int) -> bytes | None:
        if table.start not in self._read:
            self._left -= table.stop - table.start
            if self._left < 0:
                raise Broken(f"unwinding tables of more than {_MOST_READ >> 20} MiB")
            self._read[table.start] = self._entries(table)
        begins, entries = self._read[table.start]
        index = int(begins.searchsorted(address, side="right")) - 1
        if index < 0:
            raise Broken(f"no unwinding table has {address:#x}")
        place, word = (int(number) for number in entries[index])
        if word == _CANNOT:
            return None
        if not word >> 31:  # elsewhere
            place = (place + 4 + _signed(word)) & _WORD
            word = int.from_bytes(self._guest.kernel.read(place, 4), "little")
        kind, more = word >> 24 & 0xFF, word >> 16 & 0xFF
        if kind == 0x80:
            return bytes([word >> 16 & 0xFF, word >> 8 & 0xFF, word & 0xFF])
        if kind != 0x81:
            raise Broken(f"an unwinding table for {address:#x} of unknown kind ({kind:#x})")
        data = self._guest.kernel.read(place + 4, 4 * more)
        words = [data[at : at + 4][::-1] for at in range(0, len(data), 4)]
        return b"".join([bytes([word >> 8 & 0xFF, word & 0xFF]), *words])

    def _entries(self, table: _Table) -> tuple[Any, Any]:
        """Where functions begin, in rising order; place and second word of each entry."""
        import numpy as np

        size = (table.stop - table.start) // 8 * 8
        words = np.frombuffer(self._guest.kernel.read(table.start, size), dtype="<u4")
        places = table.start + 8 * np.arange(size // 8, dtype=np.int64)
        offsets = words[::2].astype(np.int64)
        # 31 bits and a sign, relative to the entry's own place.
        offsets = (offsets & 0x7FFF_FFFF) - ((offsets & 0x4000_0000) << 1)
        begins = (places + offsets) & _WORD
        order = np.argsort(begins, kind="stable")
        entries = np.stack([places[order], words[1::2].astype(np.int64)[order]], axis=1)
        return begins[order], entries


def _tables(guest: LinuxGuest) -> Iterator[_Table]:
    symbols = guest.symbols
    # The code of the boot is behind the rest, and gone; a CPU's first task has frames of it.
    end = max(symbols.address("_etext"), symbols.get("_einittext", 0))
    code = symbols.address("_stext"), end
    yield _bounded(
        code, symbols.address("__start_unwind_idx"), symbols.address("__stop_unwind_idx")
    )
    members = {"start": "start", "stop": "stop", "first": "begin_addr", "last": "end_addr"}
    try:
        addresses = guest.entries("unwind_tables", "unwind_table", "list")
        layout = guest.layout("unwind_table", members, text=())
    except NotFoundError as error:
        guest.note(f"no unwinding tables of modules: {error}", 0)
        return
    columns = layout.lists(guest.kernel, addresses, [])
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        if None not in row.values():
            yield _bounded((row["first"], row["last"]), row["start"], row["stop"])


def _bounded(code: tuple[int, int], start: int, stop: int) -> _Table:
    return _Table(code, start, max(start, min(stop, start + _LARGEST_TABLE)))


def execute(
    instructions: bytes, registers: dict[int, int], read: Callable[[int], int]
) -> dict[int, int]:
    """The caller's registers, by their numbers; the stack pointer is among those that are given.

    :param read: the word at an address of a stack.
    :raises Broken: an instruction that kernels do not have, or a register that is not known.
    """
    machine = _Machine(dict(registers), read)
    machine.run(iter(instructions))
    found = machine.registers
    if PC not in found:
        if LR not in found:
            raise Broken("the return address is in a register that is not known")
        found[PC] = found[LR]
    return found


class _Machine:
    """Executes instructions; what a function has saved is popped from the stack."""

    def __init__(self, registers: dict[int, int], read: Callable[[int], int]) -> None:
        self.registers = registers
        self.registers.pop(PC, None)
        self._read = read

    def run(self, code: Iterator[int]) -> None:
        for byte in code:
            if byte == 0xB0:
                return
            if byte < 0x80:
                step = ((byte & 0x3F) << 2) + 4
                self._move(-step if byte & 0x40 else step)
            elif byte & 0xF0 == 0x80:
                self._pop(((byte & 0xF) << 8 | self._next(code)) << 4)
            elif byte & 0xF0 == 0x90 and byte & 0xD != 0xD:
                self._set_sp(byte & 0xF)
            elif byte & 0xF0 == 0xA0:
                self._pop(((1 << ((byte & 7) + 1)) - 1) << 4 | (byte & 8) << 11)
            elif byte == 0xB1:
                self._pop(self._next(code) & 0xF)
            elif byte == 0xB2:
                self._move(0x204 + (self._number(code) << 2))
            else:
                raise Broken(f"an unwinding instruction that is not known ({byte:#x})")

    def _move(self, step: int) -> None:
        self.registers[SP] = (self.registers[SP] + step) & _WORD

    def _set_sp(self, number: int) -> None:
        if number not in self.registers:
            raise Broken(f"the stack pointer was in r{number}, which is not known")
        self.registers[SP] = self.registers[number]

    def _pop(self, mask: int) -> None:
        if not mask:
            raise Broken("the tables say that nothing leads on")
        at, popped = self.registers[SP], {}
        for number in range(16):
            if mask >> number & 1:
                popped[number] = self._read(at)
                at += 4
        self.registers.update({SP: at & _WORD} | popped)

    @staticmethod
    def _next(code: Iterator[int]) -> int:
        byte = next(code, None)
        if byte is None:
            raise Broken("an unwinding table ends within an instruction")
        return byte

    def _number(self, code: Iterator[int]) -> int:
        """ULEB128, of 28 bits at most."""
        value = 0
        for shift in range(0, 28, 7):
            byte = self._next(code)
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
        raise Broken("an unwinding table has a number that is too large")


def _signed(word: int) -> int:
    """31 bits and a sign (prel31)."""
    return (word & 0x7FFF_FFFF) - ((word & 0x4000_0000) << 1)
