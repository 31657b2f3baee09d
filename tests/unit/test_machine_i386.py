"""Finding a 32-bit kernel by its tables, and walking its stacks (synthetic)."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import Blob
from virtintrospect.arch import X86_LEGACY, X86_PAE, PagingMode
from virtintrospect.guests.linux.machine.i386 import TRAMPOLINE, by_trampoline
from virtintrospect.guests.linux.machine.lowmem import image_range, page_offset
from virtintrospect.guests.linux.unwind import Stack, State
from virtintrospect.guests.linux.unwind_i386 import BasePointers
from virtintrospect.symbols.btf import Btf
from virtintrospect.translation import LinearRange

#: Where the image is, where it ends to be protected, and its top table.
IMAGE, PROTECTED, ROOT = 0x0140_0000, 0x0160_1000, 0x0170_0000
SIZE = 48 << 20
MODES = [X86_LEGACY, X86_PAE]


def kernel(mode: PagingMode, base: int = 0xC000_0000) -> BuiltMemory:
    """Low memory mapped by large pages, but where the image ends to be protected."""
    memory, size = BuiltMemory(SIZE), mode.entry_size
    large = 1 << mode.levels[-2].shift
    directory = ROOT if mode is X86_LEGACY else ROOT + 0x1000
    if mode is X86_PAE:
        memory.write_u64(ROOT + 8 * (base >> 30), directory | 1)
        base &= (1 << 30) - 1
    table = ROOT + 0x2000
    for paddr in range(0, SIZE, large):
        entry = paddr | 0xE3
        if paddr <= PROTECTED < paddr + large or paddr < IMAGE < paddr + large:
            entry = table | 0x63
            for place in range(paddr, paddr + large, 4096):
                bits = 0x61 if IMAGE <= place < PROTECTED else 0x63
                slot = table + (place - paddr) // 4096 * size
                memory.write(slot, (place | bits).to_bytes(size, "little"))
            table += 0x1000
        elif IMAGE <= paddr < PROTECTED:
            entry = paddr | 0xE1
        slot = directory + (base + paddr >> mode.levels[-2].shift) * size
        memory.write(slot, entry.to_bytes(size, "little"))
    return memory


def header(memory: BuiltMemory, code: int, segments: int, place: int = 0x9_8A44) -> None:
    memory.write(place, struct.pack("<IHHI", code, 0, 31, segments))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_the_image_is_what_cannot_be_written(mode: PagingMode) -> None:
    memory = kernel(mode)
    found = LinearRange(0xC000_0000 + IMAGE, 0xC000_0000 + PROTECTED, IMAGE)
    assert image_range(memory, mode, ROOT) == found
    header(memory, IMAGE + 0x80, IMAGE + 0x5000)
    (mapping,) = set(by_trampoline(memory))
    assert mapping.image == found
    assert mapping.root == ROOT
    assert mapping.mode is mode
    assert mapping.found_by == TRAMPOLINE


@pytest.mark.parametrize("base", [0xB000_0000, 0x8000_0000, 0x4000_0000])
def test_other_splits_of_the_addresses(base: int) -> None:
    memory = kernel(X86_LEGACY, base)
    assert page_offset(memory, X86_LEGACY, ROOT) == base
    header(memory, IMAGE + 0x80, IMAGE + 0x5000)
    assert {mapping.image.start for mapping in by_trampoline(memory)} == {base + IMAGE}


@pytest.mark.parametrize(
    ("code", "segments"),
    [
        (IMAGE - 0x80_0000 + 0x80, IMAGE),  # before the image
        (0x8_0000, IMAGE),  # in the first MiB
        (0x7FFF_0000, 0x7FFF_1000),  # beyond memory
        (IMAGE, 0xFFFF_FFFF),
    ],
)
def test_headers_that_lead_nowhere(code: int, segments: int) -> None:
    memory = kernel(X86_PAE)
    header(memory, code, segments)
    header(memory, IMAGE, IMAGE, 0x9_9FFC)  # cut off by the end of its page
    assert list(by_trampoline(memory)) == []


def test_nothing_is_protected_while_the_kernel_boots() -> None:
    memory = kernel(X86_LEGACY)
    for slot in range(ROOT + 0xC00, ROOT + 0x1000, 4):
        memory.data[slot] |= 2
    table = ROOT + 0x2000
    for slot in range(table, table + 0x2000, 4):
        memory.data[slot] |= 2
    assert image_range(memory, X86_LEGACY, ROOT) is None


# -- stacks ---------------------------------------------------------------------------------

TEXT, STACK = 0xC100_0000, 0xF6A0_0000
REGISTERS = (
    "bx", "cx", "dx", "si", "di", "bp", "ax", "ds", "es", "fs", "gs", "orig_ax", "ip", "cs",
    "flags", "sp", "ss",
)  # fmt: skip
IP, CS, SP, BP = (4 * REGISTERS.index(name) for name in ("ip", "cs", "sp", "bp"))


@pytest.fixture
def walker() -> BasePointers:
    blob = Blob()
    word = blob.integer("unsigned long", 4)
    blob.struct("pt_regs", 68, [(name, word, 32 * n, 0) for n, name in enumerate(REGISTERS)])
    names = ("flags", "si", "di", "bx", "bp", "ret_addr")
    blob.struct("inactive_task_frame", 24, [(n, word, 32 * i, 0) for i, n in enumerate(names)])
    types = Btf.parse(blob.build())
    types.pointer_size = 4
    guest: Any = SimpleNamespace(types=types, symbols={"ret_from_fork": TEXT + 0x10})
    text: Any = SimpleNamespace(
        is_code=lambda a: TEXT <= a < TEXT + 0x10000, in_image=lambda a: TEXT <= a < TEXT + 0x10000
    )
    return BasePointers(guest, text)


def stack(words: dict[int, int]) -> Stack:
    data = bytearray(8192)
    for at, word in words.items():
        struct.pack_into("<I", data, at, word)
    return Stack(STACK, bytes(data))


@pytest.mark.parametrize("padding", [8, 16])
@pytest.mark.parametrize("moved", [0, 4, 12])
def test_a_system_call_ends_at_the_registers_above(
    walker: BasePointers, padding: int, moved: int
) -> None:
    regs = 8192 - padding - 68
    outer = regs - 8 - moved
    copy = stack(
        {
            100: STACK + outer, 104: TEXT + 0x200,
            outer: 0xBF80_1234, outer + 4: TEXT + 0x300,  # the program's own ebp
            regs + IP: 0xB7F0_0549, regs + CS: 0x73, regs + SP: 0xBF80_1200, regs + BP: 0xBF80_1234,
        }
    )  # fmt: skip
    frames, broken = walker.frames(State(TEXT + 0x100, STACK + 96, STACK + 100), [copy])
    assert not broken
    assert [frame.address for frame in frames] == [
        TEXT + 0x100, TEXT + 0x200, TEXT + 0x300, 0xB7F0_0549,
    ]  # fmt: skip
    assert [frame.found_by for frame in frames] == ["saved", *["frame record"] * 2, "user"]
    assert frames[-1].sp == 0xBF80_1200


def test_a_program_whose_base_pointer_looks_like_registers(walker: BasePointers) -> None:
    """Below 2 GiB a program's ebp has no top bit, either: its frame is told by its place."""
    regs = 8192 - 8 - 68
    copy = stack(
        {
            regs - 8: 0x0804_1234, regs - 4: TEXT + 0x300,
            regs + IP: 0x0804_0549, regs + CS: 0x7B, regs + SP: 0x0900_0000,
        }
    )  # fmt: skip
    frames, broken = walker.frames(State(TEXT, STACK, STACK + regs - 8), [copy])
    assert (frames[-1].found_by, frames[-1].address, broken) == ("user", 0x0804_0549, "")


def test_interrupted_code_and_the_end_of_a_kernel_thread(walker: BasePointers) -> None:
    regs, last = 200, 8192 - 8 - 68
    copy = stack(
        {
            100: (STACK + regs) & 0x7FFF_FFFF, 104: TEXT + 0x200,
            regs + IP: TEXT + 0x400, regs + CS: 0x60, regs + SP: STACK + 300,
            regs + BP: STACK + 400,
            400: (STACK + last) & 0x7FFF_FFFF, 404: TEXT + 0x500,  # ret_from_fork's frame
        }
    )  # fmt: skip
    frames, broken = walker.frames(State(TEXT + 0x100, STACK + 96, STACK + 100), [copy])
    assert not broken
    found = [(frame.address - TEXT, frame.found_by, frame.returns) for frame in frames]
    assert found == [
        (0x100, "saved", True), (0x200, "frame record", True), (0x400, "registers", False),
        (0x500, "frame record", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "left", "broken"),
    [
        (8192 - 8 - 68 - 8, 0, False),
        (8192 - 16 - 68 - 16, 0x100_0000, False),  # the boot CPU's
        (4000, 0, True),
    ],
)
def test_without_a_caller_is_only_what_lies_at_the_top(
    walker: BasePointers, place: int, left: int, broken: bool
) -> None:
    """The first frame of an idle task; a zero elsewhere is one that was left over."""
    copy = stack({100: STACK + place, 104: TEXT + 0x200, place: left, place + 4: TEXT + 0x300})
    frames, why = walker.frames(State(TEXT + 0x100, STACK + 96, STACK + 100), [copy])
    assert [frame.address - TEXT for frame in frames] == [0x100, 0x200, 0x300]
    assert why == ("the stack ends in the middle" if broken else "")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({100: STACK + 100, 104: TEXT + 4}, "the wrong way"),
        ({100: STACK + 50, 104: TEXT + 4}, "the wrong way"),
        ({100: STACK + 200, 104: 0x1234}, "no code"),
        ({100: 0xC000_0000, 104: TEXT + 4}, "on no stack"),
        ({100: 0x1234, 104: TEXT + 4}, "on no stack"),
    ],
)
def test_lies(walker: BasePointers, words: dict[int, int], why: str) -> None:
    _, broken = walker.frames(State(TEXT + 0x100, STACK + 96, STACK + 100), [stack(words)])
    assert why in broken


def test_a_task_that_has_never_run(walker: BasePointers) -> None:
    copy = stack({500: 0, 516: STACK + 600, 520: TEXT + 0x10})
    saved = walker.saved({"sp": STACK + 500}, Stack(STACK + 500, copy.data[500:]))
    assert (saved.ip, saved.bp, saved.sp, saved.signal) == (
        TEXT + 0x10, STACK + 600, STACK + 524, True,
    )  # fmt: skip
    frames, broken = walker.frames(saved, [copy])
    assert (len(frames), broken) == (1, "")
