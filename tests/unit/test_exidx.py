"""ARM's unwinding tables (synthetic): each instruction, and what a hostile guest may put there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from virtintrospect.errors import FaultError, NotFoundError
from virtintrospect.guests.linux.exidx import LR, PC, SP, UnwindTables, execute
from virtintrospect.guests.linux.unwind import Broken

STACK = 0xE080_0000
TEXT, TABLE, EXTRA = 0xC030_0000, 0xC100_0000, 0xC110_0000


def word(address: int) -> int:
    """A stack on which each word has its own number as value."""
    if not STACK <= address < STACK + 8192:
        raise Broken("not on the stack")
    return address - STACK


def run(*code: int, **registers: int) -> dict[int, int]:
    known = {int(name[1:]): value for name, value in registers.items()}
    return execute(bytes(code), {SP: STACK, **known}, word)


@pytest.mark.parametrize(
    ("code", "sp"),
    [
        ([0x00], 4), ([0x3F], 256), ([0x01, 0x40], 4), ([0xB2, 0x01], 0x208),
        ([0xB2, 0x81, 0x01], 0x204 + 129 * 4), ([0x02, 0xB0, 0x3F], 12), ([], 0),
    ],
)  # fmt: skip
def test_moves_of_the_stack_pointer(code: list[int], sp: int) -> None:
    found = run(*code, r14=0xC030_0004)
    assert (found[SP], found[PC]) == (STACK + sp, 0xC030_0004)


@pytest.mark.parametrize(
    ("code", "popped"),
    [
        ([0x84, 0x01], [4, LR]), ([0x88, 0xF0], [8, 9, 10, 11, PC]), ([0xA8], [4, LR]),
        ([0xAF], [4, 5, 6, 7, 8, 9, 10, 11, LR]), ([0xA1], [4, 5]), ([0xB1, 0x0A], [1, 3]),
    ],
)  # fmt: skip
def test_what_was_saved(code: list[int], popped: list[int]) -> None:
    found = run(*code, r14=0xC030_0004)
    assert [found[number] for number in popped] == [4 * n for n in range(len(popped))]
    assert found[SP] == STACK + 4 * len(popped)
    if PC not in popped:
        assert found[PC] == found[LR]


def test_registers_of_interrupted_code() -> None:
    """Entry from the kernel saves them all; the stack pointer is the saved one."""
    found = run(0xB1, 0x0F, 0x8F, 0xFF)
    assert found[0] == 0
    assert (found[SP], found[LR], found[PC]) == (4 * SP, 4 * LR, 4 * PC)


def test_a_frame_pointer() -> None:
    assert run(0x9B, 0x84, 0x80, r11=STACK + 64)[SP] == STACK + 72
    with pytest.raises(Broken, match="r7, which is not known"):
        run(0x97)


@pytest.mark.parametrize(
    "code",
    [
        [0x80, 0x00], [0x80], [0x9D], [0x9F], [0xB1], [0xB1, 0x00], [0xB2, *[0xFF] * 9], [0xB3],
        [0xC8], [0x3F] * 100 + [0xA8], [],
    ],
)  # fmt: skip
def test_nonsense_ends_the_walk(code: list[int]) -> None:
    with pytest.raises(Broken):
        run(*code)


# -- tables ---------------------------------------------------------------------------------


class Memory:
    """The kernel's memory: words, by their addresses."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def read(self, vaddr: int, size: int) -> bytes:
        try:
            found = [self.words[at] for at in range(vaddr, vaddr + size, 4)]
        except KeyError as missing:
            raise FaultError(missing.args[0], size, kind="virtual") from missing
        return struct.pack(f"<{len(found)}I", *found)


def relative(place: int, target: int) -> int:
    return (target - place) & 0x7FFF_FFFF


@pytest.fixture
def tables() -> Callable[[dict[int, int]], UnwindTables]:
    def make(words: dict[int, int]) -> UnwindTables:
        memory = Memory()
        functions = [
            (TEXT, 0x80A8_B0B0),
            (TEXT + 16, 1),
            (TEXT + 32, None),
            (TEXT + 64, 0x8500_0000),
        ]
        for number, (function, second) in enumerate(functions):
            place = TABLE + 8 * number
            memory.words[place] = relative(place, function)
            memory.words[place + 4] = second or relative(place + 4, EXTRA)
        memory.words |= words

        def entries(*_: object) -> list[int]:
            raise NotFoundError("unwind_tables")

        addresses = {
            "_stext": TEXT - 64, "_etext": TEXT + 128,
            "__start_unwind_idx": TABLE, "__stop_unwind_idx": TABLE + 8 * len(functions),
        }  # fmt: skip
        guest: Any = SimpleNamespace(
            kernel=memory,
            symbols=SimpleNamespace(address=addresses.__getitem__, get=addresses.get),
            entries=entries,
            note=lambda *_: None,
        )
        return UnwindTables(guest)

    return make


def test_instructions_of_a_function(tables: Callable[[dict[int, int]], UnwindTables]) -> None:
    found = tables({EXTRA: 0x8101_B108, EXTRA + 4: 0x84FF_B0B0})
    assert found.instructions(TEXT) == b"\xa8\xb0\xb0"
    assert found.instructions(TEXT + 15) == b"\xa8\xb0\xb0"
    assert found.instructions(TEXT + 16) is None
    assert found.instructions(TEXT + 32) == b"\xb1\x08\x84\xff\xb0\xb0"


def test_tables_of_a_hostile_guest_are_not_all_kept(
    tables: Callable[[dict[int, int]], UnwindTables], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtintrospect.guests.linux.exidx._MOST_READ", 4 * 8)
    found = tables({})
    (whole,) = found._tables
    found._tables.append(whole._replace(code=(TEXT + 128, TEXT + 256), start=TABLE + 8))
    assert found.instructions(TEXT) == b"\xa8\xb0\xb0"
    with pytest.raises(Broken, match="unwinding tables of more than"):
        found.instructions(TEXT + 128)
    assert found.instructions(TEXT + 15) == b"\xa8\xb0\xb0"


@pytest.mark.parametrize(
    ("words", "address", "message"),
    [
        ({}, TEXT - 4, "no unwinding table has"),  # before the first function
        ({}, TEXT + 128, "no unwinding table has"),
        ({}, TEXT + 64, "unknown kind"),
        ({}, TEXT + 32, "unreadable unwinding table"),
        ({EXTRA: 0x81FF_0000}, TEXT + 32, "unreadable unwinding table"),
        ({EXTRA: 0x1234_5678}, TEXT + 32, "unknown kind"),
    ],
)
def test_tables_that_do_not_help(
    tables: Callable[[dict[int, int]], UnwindTables],
    words: dict[int, int],
    address: int,
    message: str,
) -> None:
    with pytest.raises(Broken, match=message):
        tables(words).instructions(address)
