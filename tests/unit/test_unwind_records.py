"""Stacks of AArch64 and RISC-V, by hand: interrupted code, damage. Real ones: the guests' tests."""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from virtintrospect.guests.linux.unwind import Stack, StackWalker, State
from virtintrospect.guests.linux.unwind_arm64 import FrameRecords
from virtintrospect.guests.linux.unwind_riscv import FrameChain

BASE, CODE, USER = 0xFFFF_8000_0800_0000, 0xFFFF_8000_1000_0000, 0x40_1000
ENTRY = CODE + 0x1000
#: Members of struct pt_regs; the record is behind the registers.
REGS = {"regs": 0, "sp": 248, "pc": 256, "pstate": 264, "stackframe": 272,
        "epc": 0, "s0": 8, "status": 16}  # fmt: skip
TYPES = SimpleNamespace(
    offsetof=lambda _, name: REGS[name], has=lambda _, name: name == "stackframe.type"
)


def walker(kind: type[StackWalker]) -> StackWalker:
    inside: Any = SimpleNamespace(
        in_image=lambda address: CODE <= address < CODE + 0x10000, is_code=lambda _: False
    )
    guest: Any = SimpleNamespace(
        types=TYPES,
        symbols={"handle_exception": ENTRY, "ret_from_exception_end": ENTRY + 0x100},
        mapping=SimpleNamespace(mode=SimpleNamespace(virtual_bits=49)),
    )
    return kind(guest, inside)  # type: ignore[call-arg]


def stack(words: dict[int, int]) -> Stack:
    """A stack of 4 KiB; ``words`` by their offset in it."""
    data = bytearray(4096)
    for at, value in words.items():
        data[at : at + 8] = struct.pack("<Q", value)
    return Stack(BASE, bytes(data))


def test_arm64_goes_through_an_interrupt_to_a_program() -> None:
    """Since 6.13 entry from the kernel is marked; return addresses may be signed."""
    regs, last = 0x200, 0x800
    copy = stack({
        0x100: BASE + regs + 272, 0x108: 0x00B5 << 48 | 1 << 55 | (CODE + 8) & (1 << 48) - 1,
        regs + 29 * 8: BASE + 0x600, regs + 248: BASE + 0x500, regs + 256: CODE + 16,
        regs + 264: 5, regs + 272 + 16: 2,
        0x600: BASE + last + 272, 0x608: CODE + 24,
        last + 248: 0x7FFF_0000, last + 256: USER, last + 272 + 16: 1,
    })  # fmt: skip
    frames, broken = walker(FrameRecords).frames(State(CODE, BASE + 0x80, BASE + 0x100), [copy])
    assert not broken
    assert [(frame.address, frame.found_by) for frame in frames] == [
        (CODE, "saved"), (CODE + 8, "frame record"), (CODE + 16, "registers"),
        (CODE + 24, "frame record"), (USER, "user"),
    ]  # fmt: skip


def test_riscv_goes_through_an_interrupt_to_a_program() -> None:
    regs, last = 0x200, 0x800
    copy = stack({
        regs - 16: 0, regs - 8: ENTRY + 8,
        regs: CODE + 16, regs + 8: BASE + last, regs + 16: 1 << 8,
        last - 16: 0, last - 8: ENTRY + 8, last: USER,
    })  # fmt: skip
    frames, broken = walker(FrameChain).frames(State(CODE, BASE + 0x80, BASE + regs), [copy])
    assert not broken
    assert [(frame.address, frame.found_by) for frame in frames] == [
        (CODE, "saved"), (ENTRY + 8, "frame record"), (CODE + 16, "registers"),
        (ENTRY + 8, "frame record"), (USER, "user"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [FrameRecords, FrameChain])
@pytest.mark.parametrize("following", [0x100, 0x80])
def test_a_chain_that_turns_back_ends(kind: type[StackWalker], following: int) -> None:
    at = 0x100 if kind is FrameRecords else 0xF0
    copy = stack({at: BASE + following, at + 8: CODE + 8})
    _, broken = walker(kind).frames(State(CODE, BASE, BASE + 0x100), [copy])
    assert broken


@pytest.mark.parametrize("kind", [FrameRecords, FrameChain])
def test_noise_ends(kind: type[StackWalker]) -> None:
    """Random words that often lead into the stack or to code: a bounded number of frames."""
    noise = random.Random(7)
    for _ in range(300):
        words = {
            at: noise.choice((BASE + noise.randrange(4096), CODE + noise.randrange(4096), 0, 2))
            for at in range(0, 4096, 8)
        }
        start = State(CODE, BASE, BASE + noise.randrange(0, 4096, 8))
        frames, _ = walker(kind).frames(start, [stack(words)])
        assert len(frames) <= 256 + 64 + 1
