"""Tables of exported symbols (synthetic images; a real one is in the guests' tests)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.built import symbol_table
from tests.unit.symbols.btf_blob import DATASEC, INT, VAR, Blob
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.exports import find_exports
from virtintrospect.symbols.table import Symbols

BASE = 0xFFFF_8000_1000_0000
TEXT, STRINGS, TABLE = 0x1000, 0x8000, 0x9000
FUNCTIONS = {"kfree": TEXT, "kmalloc_noprof": TEXT + 0x40, "_printk": TEXT + 0x80}
DATA = {"init_task": 0x2_0000, "init_net": 0x2_1000}


def image(width: int, names: list[str]) -> memoryview:
    """An image with a table of those names; ``width`` words an entry."""
    data = bytearray(1 << 16)
    at, string = TABLE, STRINGS
    for name in names:
        value = (FUNCTIONS | DATA)[name]
        entry = [value - at, string - at - 4, 0][:width]
        data[at : at + 4 * width] = struct.pack(f"<{width}i", *entry)
        data[string : string + len(name) + 1] = name.encode() + b"\0"
        at, string = at + 4 * width, string + len(name) + 1
    return memoryview(bytes(data))


def functions() -> Symbols:
    """All of them functions, as kallsyms marks these."""
    table = symbol_table({name: BASE + at for name, at in FUNCTIONS.items()})
    names = memoryview(bytes(table.names).replace(b"\0d", b"\0T"))
    return Symbols(table.__class__(names, *(getattr(table, f) for f in (
        "offsets", "addresses", "index", "first_relative", "end_relative"))), BASE)  # fmt: skip


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize(
    "names",
    [
        ["_printk", "init_net", "init_task", "kfree"],
        ["init_net", "_printk"],
        ["init_net", "init_task", "kfree"],
        ["kfree", "init_net", "init_task"],
    ],
)
def test_all_entries_around_a_known_one(width: int, names: list[str]) -> None:
    found = find_exports(image(width, names), BASE, functions())
    assert found.addresses == {name: BASE + (FUNCTIONS | DATA)[name] for name in names}
    (table, entries), (strings, text) = found.regions
    assert (table, len(entries)) == (TABLE, 4 * width * len(names))
    assert (strings, bytes(text)) == (STRINGS, b"\0".join(n.encode() for n in names) + b"\0")


def test_nothing_where_there_is_nothing() -> None:
    assert find_exports(memoryview(bytes(1 << 16)), BASE, functions()).addresses == {}
    assert find_exports(image(3, ["init_net", "init_task"]), BASE, functions()).regions == []


@given(st.integers(0, (1 << 16) - 4), st.binary(min_size=1, max_size=64))
def test_damage_costs_symbols_only(at: int, noise: bytes) -> None:
    data = bytearray(image(3, ["_printk", "init_net", "init_task", "kfree"]))
    data[at : at + len(noise)] = noise
    found = find_exports(memoryview(bytes(data[: 1 << 16])), BASE, functions())
    assert len(found.addresses) <= 64


def test_variables_of_a_section() -> None:
    blob = Blob()
    number = blob.add(INT, "int", 4, blob.words(32))
    first = blob.add(VAR, "runqueues", number, blob.words(0))
    second = blob.add(VAR, "cpu_number", number, blob.words(0))
    body = blob.words(first, 0x40, 4, second, 0x80, 4)
    blob.add(DATASEC, ".data..percpu", 0x100, body, vlen=2)
    types = Btf.parse(blob.build())
    assert types.section(".data..percpu") == {"runqueues": 0x40, "cpu_number": 0x80}
    assert types.section(".data") == {}
