"""Unwinding over hand-made tables and stacks: every form of an entry, and lies (synthetic)."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import Blob
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.orc import Entry, Format, Frame, Orc, Register
from virtintrospect.guests.linux.unwind import Stack, State
from virtintrospect.guests.linux.unwind_x86 import Unwinder
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.btf import Btf
from virtintrospect.translation import LinearRange

TEXT = 0xFFFF_FFFF_8100_0000
DATA = 0xFFFF_8880_0000_0000
STACK = 0xFFFF_C900_0000_0000
PLACES, ENTRIES = DATA + 0x1000, DATA + 0x2000

#: What follows the registers, as (name, bits), of each form; ``type`` of its CALL and REGS.
OLD = [("type", 2), ("end", 1)]
MIDDLE = [("type", 2), ("signal", 1), ("end", 1)]
NEW = [("type", 3), ("signal", 1)]

REGISTERS = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip", "cs", "flags", "sp", "ss",
)  # fmt: skip


def types(rest: Sequence[tuple[str, int]], size: int = 6) -> Btf:
    blob = Blob()
    s16, u32 = blob.integer("s16", 2, signed=True), blob.integer("unsigned int", 4)
    u64 = blob.integer("unsigned long", 8)
    members = [("sp_offset", s16, 0, 0), ("bp_offset", s16, 16, 0)]
    at = 32
    for name, bits in (("sp_reg", 4), ("bp_reg", 4), *rest):
        members.append((name, u32, at, bits))
        at += bits
    blob.struct("orc_entry", size, members)
    blob.struct("pt_regs", 168, [(name, u64, 64 * n, 0) for n, name in enumerate(REGISTERS)])
    return Btf.parse(blob.build())


def packed(sp: int, bp: int, sp_reg: int, bp_reg: int, rest: Sequence[tuple[int, int]]) -> bytes:
    word, at = sp_reg | bp_reg << 4, 8
    for value, bits in rest:
        word |= value << at
        at += bits
    return struct.pack("<hhH", sp, bp, word)


@pytest.mark.parametrize(
    ("rest", "values", "expected"),
    [
        (OLD, (0, 0), (Frame.CALL, False)),
        (OLD, (1, 0), (Frame.REGS, True)),
        (OLD, (2, 0), (Frame.REGS_PARTIAL, True)),
        (OLD, (3, 0), (Frame.UNDEFINED, False)),
        (MIDDLE, (1, 0, 0), (Frame.REGS, False)),
        (MIDDLE, (0, 1, 0), (Frame.CALL, True)),
        (NEW, (0, 0), (Frame.UNDEFINED, False)),
        (NEW, (1, 0), (Frame.END, False)),
        (NEW, (2, 0), (Frame.CALL, False)),
        (NEW, (3, 1), (Frame.REGS, True)),
        (NEW, (4, 1), (Frame.REGS_PARTIAL, True)),
        (NEW, (7, 0), (Frame.UNDEFINED, False)),
    ],
)
def test_forms(
    rest: list[tuple[str, int]], values: tuple[int, ...], expected: tuple[Frame, bool]
) -> None:
    form = Format(types(rest))
    data = packed(16, -16, 5, 1, [(v, bits) for v, (_, bits) in zip(values, rest, strict=True)])
    assert form.decode(data) == Entry(16, -16, Register.SP, Register.PREV_SP, *expected)


@pytest.mark.parametrize(("end", "frame"), [(0, Frame.UNDEFINED), (1, Frame.END)])
def test_old_ends(end: int, frame: Frame) -> None:
    assert Format(types(OLD)).decode(packed(0, 0, 0, 0, [(0, 2), (end, 1)])).frame is frame


def test_register_numbers_without_meaning() -> None:
    entry = Format(types(NEW)).decode(packed(8, 0, 15, 12, [(2, 3), (0, 1)]))
    assert (entry.sp_register, entry.bp_register) == (None, None)


def test_an_entry_of_absurd_size() -> None:
    with pytest.raises(CorruptDataError):
        Format(types(NEW, size=4096))


# -- a small kernel -------------------------------------------------------------------------


class Kernel:
    """A guest with one pair of tables; each function has 0x100 bytes and one entry.

    :param functions: name → packed entry, in order of addresses.
    """

    def __init__(self, functions: dict[str, bytes], rest: Sequence[tuple[str, int]] = NEW) -> None:
        self.memory = BuiltMemory(1 << 16)
        self.addresses = {name: TEXT + 0x100 * n for n, name in enumerate(functions)}
        self.notes: list[str] = []
        for number, entry in enumerate(functions.values()):
            slot = PLACES + 4 * number
            # The true distance does not fit in 32 bits: the text is mapped near the table here.
            self.memory.write(slot - DATA, struct.pack("<i", TEXT_NEAR + 0x100 * number - slot))
            self.memory.write(ENTRIES - DATA + 6 * number, entry)
        symbols = {
            "__start_orc_unwind_ip": PLACES, "__stop_orc_unwind_ip": PLACES + 4 * len(functions),
            "__start_orc_unwind": ENTRIES,
        }  # fmt: skip
        symbols |= {name: TEXT_NEAR + 0x100 * n for n, name in enumerate(functions)}
        self.symbols = symbols
        linear = LinearRange(DATA, DATA + (1 << 16), 0)
        self.guest: Any = SimpleNamespace(
            types=types(rest),
            kernel=AddressSpace(self.memory, X86_64_4LEVEL, 0, linear=[linear]),
            symbols=Names(symbols),
            note=lambda what, _: self.notes.append(what),
        )
        end = TEXT_NEAR + 0x100 * len(functions)
        self.text: Any = SimpleNamespace(
            in_image=lambda address: TEXT_NEAR <= address < end,
            is_code=lambda address: TEXT_NEAR <= address < end,
            module=lambda _: None,
        )

    def __getitem__(self, name: str) -> int:
        """An address in the middle of a function."""
        return self.symbols[name] + 0x80

    def unwinder(self) -> Unwinder:
        return Unwinder(self.guest, self.text, Orc(self.guest, self.text, Budget()))

    def names(self, frames: Sequence[Any]) -> list[str]:
        numbers = {address: name for name, address in self.symbols.items()}
        return [numbers.get(frame.address & ~0xFF, "?") for frame in frames]


class Names(dict[str, int]):
    """Symbols by name."""

    def address(self, name: str) -> int:
        return self[name]


#: Near enough to the tables for a distance of 32 bits.
TEXT_NEAR = DATA + 0x10_0000
CALL, REGS, PARTIAL, END = (2, 3), (3, 3), (4, 3), (1, 3)
PLAIN, SIGNAL = (0, 1), (1, 1)


def stack(*values: int, start: int = STACK) -> Stack:
    return Stack(start, struct.pack(f"<{len(values)}Q", *values))


def test_calls_to_the_end_of_a_kernel_thread() -> None:
    kernel = Kernel({
        "inner": packed(16, 0, 5, 0, [CALL, PLAIN]),
        "saves_bp": packed(24, -16, 5, 1, [CALL, PLAIN]),
        "by_bp": packed(16, -16, 4, 1, [CALL, PLAIN]),
        "first": packed(0, 0, 0, 0, [END, PLAIN]),
    })  # fmt: skip
    copy = stack(
        0, kernel["saves_bp"], 1, STACK + 64, kernel["by_bp"], 7, 7, 7, 0xB0, kernel["first"], 9
    )
    frames, broken = kernel.unwinder().frames(State(kernel["inner"], STACK), [copy])
    assert broken == ""
    assert kernel.names(frames) == ["inner", "saves_bp", "by_bp", "first"]
    assert [frame.found_by for frame in frames] == ["saved", "orc", "orc", "orc"]
    assert frames[-1].sp == STACK + 80


def registers(ip: int, sp: int, cs: int, bp: int = 0) -> list[int]:
    values = [0] * 21
    values[4], values[16], values[17], values[19] = bp, ip, cs, sp
    return values


def test_through_an_interrupt_on_another_stack_to_user_mode() -> None:
    """The interrupt's stack ends with the pointer to the stack that was left."""
    kernel = Kernel({
        "handler": packed(8, 0, 5, 0, [CALL, PLAIN]),
        "on_irq_stack": packed(8, 0, 9, 0, [CALL, PLAIN]),
        "entry": packed(0, 0, 5, 0, [REGS, SIGNAL]),
        "interrupted": packed(8, 0, 5, 0, [CALL, PLAIN]),
        "system_call": packed(0, 0, 5, 0, [REGS, PLAIN]),
    })  # fmt: skip
    own_start = STACK + 0x10000
    own = [kernel["entry"], *registers(kernel["interrupted"], own_start + 22 * 8, 0x10)]
    own += [kernel["system_call"], *registers(0x401000, 0x7FFF_0000, 0x33)]
    task = stack(*own, start=own_start)
    irq = stack(kernel["on_irq_stack"], own_start)
    frames, broken = kernel.unwinder().frames(
        State(kernel["handler"], STACK, signal=True), [task, irq], "registers"
    )
    assert broken == ""
    assert kernel.names(frames[:-1]) == [
        "handler", "on_irq_stack", "entry", "interrupted", "system_call",
    ]  # fmt: skip
    assert frames[-1][:3] == (0x401000, 0x7FFF_0000, "user")
    assert [frame.returns for frame in frames] == [False, True, True, False, True, True]


def test_the_indirect_stack_pointer_of_older_kernels() -> None:
    """There the offset is that of the pointer, not what is added to it."""
    kernel = Kernel({
        "on_irq_stack": packed(8, 0, 9, 0, [CALL, PLAIN]),
        "first": packed(0, 0, 0, 0, [END, PLAIN]),
    })  # fmt: skip
    copy = stack(0xDEAD, STACK + 32, 0, kernel["first"], 0)
    frames, broken = kernel.unwinder().frames(State(kernel["on_irq_stack"], STACK), [copy])
    assert broken == ""
    assert kernel.names(frames) == ["on_irq_stack", "first"]


def test_newer_register_numbers_are_told_by_the_code() -> None:
    """Since 7.x the stack pointer has number 3 and the caller's 8."""
    kernel = Kernel({
        "schedule": packed(8, 0, 3, 0, [CALL, PLAIN]),
        "vfs_read": packed(24, -16, 3, 8, [CALL, PLAIN]),
        "by_bp": packed(16, -16, 4, 8, [CALL, PLAIN]),
        "first": packed(0, 0, 0, 0, [END, PLAIN]),
    })  # fmt: skip
    copy = stack(kernel["vfs_read"], 1, STACK + 48, kernel["by_bp"], 7, 7, 0xB0, kernel["first"], 9)
    frames, broken = kernel.unwinder().frames(State(kernel["schedule"], STACK), [copy])
    assert broken == ""
    assert kernel.names(frames) == ["schedule", "vfs_read", "by_bp", "first"]


def test_what_no_table_explains_is_searched_and_marked() -> None:
    kernel = Kernel({
        "known": packed(8, 0, 5, 0, [CALL, PLAIN]),
        "unknown": packed(0, 0, 0, 0, [(0, 3), PLAIN]),
    })  # fmt: skip
    copy = stack(kernel["unknown"], 5, kernel["known"], 6, kernel["known"])
    frames, broken = kernel.unwinder().frames(State(kernel["known"], STACK), [copy])
    assert "no ORC entry" in broken
    assert [frame.found_by for frame in frames] == ["saved", "orc", "scan", "scan"]


@pytest.mark.parametrize(
    ("offset", "why"), [(0, "wrong way"), (-8, "wrong way"), (0x7000, "on no stack")]
)
def test_tables_that_lead_astray(offset: int, why: str) -> None:
    kernel = Kernel({"loop": packed(offset, 0, 5, 0, [CALL, PLAIN])})
    copy = stack(*[kernel["loop"]] * 64)
    frames, broken = kernel.unwinder().frames(State(kernel["loop"], STACK + 64), [copy])
    assert why in broken
    assert len(frames) <= 66


def test_two_stacks_that_lead_to_each_other() -> None:
    kernel = Kernel({"loop": packed(8, 0, 9, 0, [CALL, PLAIN])})
    other = STACK + 0x1000
    first = stack(kernel["loop"], other, kernel["loop"], other)
    second = stack(kernel["loop"], STACK, kernel["loop"], STACK, start=other)
    frames, broken = kernel.unwinder().frames(State(kernel["loop"], STACK + 8), [first, second])
    assert "back to itself" in broken
    assert len(frames) < 10


def test_garbage_is_bounded() -> None:
    """Random tables over random stacks: an end, quickly, and no exception."""
    import random

    chance = random.Random(1)
    start = time.monotonic()
    for _ in range(200):
        functions = {f"f{n}": chance.randbytes(6) for n in range(16)}
        kernel = Kernel(functions, chance.choice([OLD, MIDDLE, NEW]))
        places = list(kernel.symbols.values())[3:]
        words = [
            chance.choice([*places, STACK + 8 * chance.randrange(600), chance.getrandbits(64)])
            for _ in range(512)
        ]
        copy = stack(*words)
        state = State(chance.choice(places) + 1, STACK + 8 * chance.randrange(500), words[0])
        frames, _ = kernel.unwinder().frames(state, [copy])
        assert len(frames) <= 256 + 64 + 1
    assert time.monotonic() - start < 60


def test_unsorted_and_unreadable_tables() -> None:
    kernel = Kernel({f"f{n}": packed(8, 0, 5, 0, [CALL, PLAIN]) for n in range(64)})
    kernel.memory.write(
        PLACES - DATA, struct.pack("<64i", *(n * 7919 % 97 - 50 for n in range(64)))
    )
    kernel.unwinder().frames(State(kernel["f9"], STACK), [stack(*[kernel["f1"]] * 8)])
    kernel.memory.broken.add(PLACES - DATA)
    _, broken = kernel.unwinder().frames(State(kernel["f9"], STACK), [stack(kernel["f1"])])
    assert "no ORC entry" in broken
    assert "unreadable ORC table" in kernel.notes


# -- frame pointers -------------------------------------------------------------------------


def test_frame_pointers_to_user_mode() -> None:
    """A kernel without ORC: entry code leaves an odd pointer to the registers."""
    kernel = Kernel({"inner": b"\0" * 6, "outer": b"\0" * 6})
    regs = registers(0x401000, 0x7FFF_0000, 0x33)
    copy = stack(STACK + 24, kernel["outer"], 0, STACK + 49, kernel["inner"], 0, *regs)
    state = State(kernel["inner"], STACK, STACK)
    frames, broken = Unwinder(kernel.guest, kernel.text, None).frames(state, [copy])
    assert broken == ""
    assert kernel.names(frames[:-1]) == ["inner", "outer", "inner"]
    assert [frame.found_by for frame in frames[1:]] == ["frame pointer", "frame pointer", "user"]


def test_frame_pointers_in_a_ring() -> None:
    kernel = Kernel({"inner": b"\0" * 6})
    copy = stack(STACK + 16, kernel["inner"], STACK, kernel["inner"])
    state = State(kernel["inner"], STACK, STACK)
    frames, broken = Unwinder(kernel.guest, kernel.text, None).frames(state, [copy])
    assert "wrong way" in broken
    assert len(frames) < 6
