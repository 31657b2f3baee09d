"""ORC tables: how to get from a place in the kernel's code to its caller's frame.

For each stretch of code an entry says where the caller's stack pointer is (``struct orc_entry``,
arch/x86/include/asm/orc_types.h; Documentation/arch/x86/orc-unwinder.rst). The places are in a
table of their own, as distances from the table's slots, and sorted. The image has one pair of
tables, each module another.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.guests.linux.budget import Budget

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.guests.linux.text import KernelText
    from virtintrospect.symbols.types import Types

#: More entries than any kernel has (Debian's 6.12 has 423,000); a module has far fewer.
_MOST_ENTRIES = 1 << 22
#: No form of an entry is larger.
_LARGEST_ENTRY = 16
#: What every form of an entry has.
_MEMBERS = ("sp_offset", "bp_offset", "sp_reg", "bp_reg", "type")
_SLOT = struct.Struct("<i")
_MASK = (1 << 64) - 1


class Register(IntEnum):
    """What an entry counts from: ORC_REG_… as it was from 4.14 until the numbers changed."""

    UNDEFINED = 0
    PREV_SP = 1
    DX = 2
    DI = 3
    BP = 4
    SP = 5
    R10 = 6
    R13 = 7
    BP_INDIRECT = 8
    SP_INDIRECT = 9
    AX = 10


#: The numbers of 7.2, where the stack pointer has 3. Types do not tell which are in use, but the
#: entries of functions do: at its first instruction, a function's frame is at SP + 8.
_NEWER = (
    Register.UNDEFINED, Register.AX, Register.DX, Register.SP, Register.BP, Register.DI,
    Register.R10, Register.R13, Register.PREV_SP, Register.SP_INDIRECT, Register.BP_INDIRECT,
)  # fmt: skip
_OLDER = tuple(Register)
#: Functions that every kernel has.
_SAMPLES = ("schedule", "do_exit", "vfs_read", "kthread", "wake_up_process")


class Frame(IntEnum):
    """What lies on the stack below the caller's frame (``ORC_TYPE_…``)."""

    UNDEFINED = 0
    END = 1
    #: A return address.
    CALL = 2
    #: All of ``struct pt_regs``.
    REGS = 3
    #: Only what the processor itself pushes: instruction and stack pointer, flags.
    REGS_PARTIAL = 4


class Entry(NamedTuple):
    """An entry, whatever form it had."""

    sp_offset: int
    bp_offset: int
    #: ``None``: a number that means nothing.
    sp_register: Register | None
    bp_register: Register | None
    frame: Frame
    #: The next address is one at which code was interrupted, not one to which a call returns.
    signal: bool


class Format:
    """How this kernel packs its entries.

    Until 6.3 ``end`` marks where stacks begin, and ``type`` counts CALL, REGS, REGS_PARTIAL from
    zero; since 6.4 (commit fb799447ae29) both are one ``type``. ``signal`` came with 6.3
    (commit ffb1b4a41016); before, every frame of registers is one.

    :raises TypeNotFoundError: the kernel has no ORC.
    :raises CorruptDataError: an entry is not what it must be.
    """

    def __init__(self, types: Types) -> None:
        self.size = types.sizeof("orc_entry")
        if not 0 < self.size <= _LARGEST_ENTRY:
            raise CorruptDataError(f"an orc_entry of {self.size} bytes", 0)
        #: What the numbers of registers mean.
        self.registers: tuple[Register, ...] = _OLDER
        self._fields = {
            name: _place(types, name, self.size)
            for name in (*_MEMBERS, "end", "signal")
            if name in _MEMBERS or types.has("orc_entry", name)
        }

    def decode(self, data: bytes) -> Entry:
        """An entry out of its bytes."""
        whole = int.from_bytes(data, "little")
        values = {name: whole >> at & (1 << bits) - 1 for name, (at, bits) in self._fields.items()}
        frame = self._frame(values)
        signal = bool(values.get("signal", frame in (Frame.REGS, Frame.REGS_PARTIAL)))
        sp_offset, bp_offset = (
            _signed(values[name], self._fields[name][1]) for name in ("sp_offset", "bp_offset")
        )
        sp_register, bp_register = (
            self.registers[values[name]] if values[name] < len(self.registers) else None
            for name in ("sp_reg", "bp_reg")
        )
        return Entry(sp_offset, bp_offset, sp_register, bp_register, frame, signal)

    def _frame(self, values: dict[str, int]) -> Frame:
        if "end" not in values:
            return Frame(values["type"]) if values["type"] <= Frame.REGS_PARTIAL else Frame(0)
        if values["sp_reg"] == Register.UNDEFINED:
            return Frame.END if values["end"] else Frame.UNDEFINED
        old = (Frame.CALL, Frame.REGS, Frame.REGS_PARTIAL, Frame.UNDEFINED)
        return old[values["type"] & 3]


def _place(types: Types, name: str, size: int) -> tuple[int, int]:
    """Lowest bit and width of a member, in the entry as one little-endian number."""
    field = types.resolve("orc_entry", name)[-1]
    start = field.offset * 8 + field.bit_offset
    bits = field.bit_size or field.size * 8
    if not 0 < bits <= 64 or not 0 <= start <= size * 8 - bits:
        raise CorruptDataError(f"orc_entry.{name} has {bits} bits at bit {start}", 0)
    return start, bits


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


class Orc:
    """Finds entries; every address is looked up once."""

    def __init__(self, guest: LinuxGuest, text: KernelText, budget: Budget) -> None:
        self._guest = guest
        self._text = text
        self._budget = budget
        self._format = Format(guest.types)
        self._known: dict[int, Entry | None] = {}
        if self._newer():
            self._format.registers = _NEWER
            self._known.clear()

    def find(self, address: int) -> Entry | None:
        """The entry that holds at a code address; ``None`` where there is none."""
        if address not in self._known:
            try:
                self._known[address] = self._search(address)
            except FaultError as error:
                self._guest.note("unreadable ORC table", error.address)
                self._known[address] = None
        return self._known[address]

    def _newer(self) -> bool:
        """Whether functions begin with a frame at register 3 + 8: that is the stack pointer."""
        votes = 0
        for name in _SAMPLES:
            address = self._guest.symbols.get(name)
            entry = None if address is None else self.find(address)
            if entry and entry.frame is Frame.CALL and entry.sp_offset == 8:
                votes += (entry.sp_register is Register(3)) - (entry.sp_register is Register.SP)
        return votes > 0

    def _search(self, address: int) -> Entry | None:
        tables = self._tables(address)
        if tables is None or self._budget.late():
            return None
        slots, entries, count = tables
        low, high = 0, count
        # The last entry at or below the address. Unsorted tables lead astray, not in circles.
        while low < high:
            middle = (low + high) // 2
            slot = slots + 4 * middle
            place = (slot + _SLOT.unpack(self._guest.kernel.read(slot, 4))[0]) & _MASK
            if place <= address:
                low = middle + 1
            else:
                high = middle
        if not low:
            return None
        data = self._guest.kernel.read(entries + (low - 1) * self._format.size, self._format.size)
        return self._format.decode(data)

    def _tables(self, address: int) -> tuple[int, int, int] | None:
        """Places, entries and their number, for the image or for the module."""
        symbols = self._guest.symbols
        if self._text.in_image(address):
            slots = symbols.address("__start_orc_unwind_ip")
            count = (symbols.address("__stop_orc_unwind_ip") - slots) // 4
            found = slots, symbols.address("__start_orc_unwind"), count
        else:
            module = self._text.module(address)
            if module is None:
                return None
            found = module.orc
        return found if 0 < found[2] <= _MOST_ENTRIES and found[0] and found[1] else None


def has_orc(guest: LinuxGuest) -> bool:
    """Whether the kernel has ORC tables (CONFIG_UNWINDER_ORC)."""
    names = ("__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind")
    return all(name in guest.symbols for name in names) and "orc_entry" in guest.types
