"""How values of kernel parameters are printed; what hostile ones give (synthetic)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.guests.linux.sysctlvalues import _bitmap, _kind, _text
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

BASE = 0xFFFF_8880_0000_0000
SIZE = 1 << 16
#: Nanoseconds of a tick at 250 Hz.
TICK = 4_000_000


@pytest.mark.parametrize(
    ("kind", "raw", "shown"),
    [
        ("int", b"\xff\xff\xff\xff\x02\0\0\0", b"-1 2"),
        ("int", b"\1\0\0", b""),  # smaller than one number
        ("uint", b"\xff\xff\xff\xff", b"4294967295"),
        ("ulong", b"\xff" * 8, b"18446744073709551615"),
        ("u8", b"\xff", b"255"),
        ("bool", b"\2", b"1"),
        ("static_key", b"\xff\xff\xff\xff", b"0"),
        ("string", b"text\0rest", b"text"),
        ("string", b"without end", b"without end"),
        ("seconds", (7 * 250 + 249).to_bytes(4, "little"), b"7"),
        ("seconds", (-250).to_bytes(4, "little", signed=True), b"-1"),
        ("milliseconds", (3).to_bytes(4, "little"), b"12"),
        ("long_milliseconds", (1 << 63).to_bytes(8, "little"), b"36893488147419103232"),
        ("user_ticks", (250).to_bytes(4, "little"), b"100"),
    ],
)
def test_printed(kind: str, raw: bytes, shown: bytes) -> None:
    assert _text(kind, raw, TICK) == shown


def test_without_a_clock_ticks_have_no_length() -> None:
    assert _text("seconds", bytes(4), None) is None
    assert _text("int", bytes(4), None) == b"0"


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"handler": 1, "size": 4, "mode": 0o200}, ""),  # nobody may read it
        ({"handler": 2, "size": 4, "mode": 0o644}, ""),
        ({"handler": None, "size": None, "mode": 0o644}, ""),
        ({"handler": 1, "size": 4, "mode": 0o644}, "int"),
        ({"handler": 1, "size": 8, "mode": 0o444}, "ulong"),
    ],
)
def test_kinds(row: dict[str, Any], kind: str) -> None:
    assert _kind(row | {"name": b"x"}, {1: "plain"}) == kind


@pytest.fixture
def guest() -> Any:
    memory = BuiltMemory(SIZE)
    memory.write_u64(0, BASE + 0x1000, 0xDEAD_0000, 0)
    memory.write(0x1000, (0b1011_1001 | 1 << 63).to_bytes(8, "little"))
    linear = LinearRange(BASE, BASE + SIZE, 0)
    notes: list[str] = []
    return SimpleNamespace(
        kernel=AddressSpace(memory, X86_64_4LEVEL, 0, linear=[linear]),
        note=lambda what, _: notes.append(what),
        notes=notes,
    )


def test_bitmaps(guest: Any) -> None:
    assert _bitmap(guest, {"data": BASE, "size": 64}) == b"0,3-5,7,63"
    assert _bitmap(guest, {"data": BASE, "size": 5}) == b"0,3-4"
    assert _bitmap(guest, {"data": BASE + 16, "size": 64}) == b""
    assert guest.notes == []


def test_hostile_bitmaps(guest: Any) -> None:
    assert _bitmap(guest, {"data": BASE + 8, "size": 64}) is None
    assert _bitmap(guest, {"data": 0xDEAD_0000, "size": 64}) is None
    assert _bitmap(guest, {"data": BASE, "size": 1 << 30}) is None
    assert len(guest.notes) == 2
