from __future__ import annotations

import itertools
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.symbols.kallsyms_image import BASE, Variant, make_image, make_symbols
from virtintrospect.errors import SymbolNotFoundError
from virtintrospect.symbols.index import NameIndex, build_index
from virtintrospect.symbols.kallsyms import decode, find_tables
from virtintrospect.symbols.table import Symbols, SymbolTable

VARIANT = Variant("new", 3, "percpu")
LISTING = make_symbols(VARIANT)
IMAGE = bytes(make_image(VARIANT, LISTING)[0])
TABLE = decode(IMAGE, find_tables(IMAGE, BASE))
SYMBOLS = Symbols(TABLE, BASE)


def test_names_lead_to_addresses() -> None:
    by_name: dict[str, list[int]] = {}
    for name, address, _ in LISTING:
        by_name.setdefault(name, []).append(address)
    for name, addresses in by_name.items():
        assert SYMBOLS.all(name) == addresses
        assert SYMBOLS.address(name) == SYMBOLS.get(name) == addresses[0]
        assert name in SYMBOLS
    assert len(SYMBOLS) == len(LISTING)
    assert SYMBOLS.type_of("_end") == "B"


def test_what_is_not_there() -> None:
    assert SYMBOLS.get("none") is None
    assert SYMBOLS.get("none", 3) == 3
    assert SYMBOLS.all("") == []
    assert "none" not in SYMBOLS
    assert 3 not in SYMBOLS
    for name in ("\udc80", "\ud800", "ü", "x" * 5000, "[*", "a\0b"):
        assert name not in SYMBOLS
        with pytest.raises(SymbolNotFoundError):
            SYMBOLS.type_of(name)
    with pytest.raises(SymbolNotFoundError) as error:
        SYMBOLS.address("_tex")
    assert "_text" in error.value.hint


def test_addresses_lead_to_names() -> None:
    last = LISTING[-1][1]
    inside = [symbol for symbol in LISTING if BASE <= symbol[1] < last]
    for (name, address, _), (_, following, _) in itertools.pairwise(inside):
        found = SYMBOLS.lookup(address)
        assert found is not None
        assert SYMBOLS.address(found[0]) <= address
        assert found[1] == 0
        if following - address > 5:
            nearest = SYMBOLS.lookup(address + 5)
            assert nearest is not None
            assert nearest[1] == 5
            assert address in SYMBOLS.all(nearest[0]), name
    assert SYMBOLS.lookup(last + 9) == ("_end", 9)
    assert SYMBOLS.lookup(0x25) == ("percpu_2", 5)
    for address in (last + 4096, BASE - 1, 0xFFFF888000000000, 1 << 64, -1, 0x10000):
        assert SYMBOLS.lookup(address) is None


def test_sliding_moves_what_is_in_the_image() -> None:
    slid = SYMBOLS.slid(BASE + 0x123000)
    assert slid.address("_end") == SYMBOLS.address("_end") + 0x123000
    assert slid.address("percpu_5") == SYMBOLS.address("percpu_5") == 80
    assert slid.lookup(BASE + 0x123000) == ("_text", 0)
    assert slid.table is SYMBOLS.table


def test_search() -> None:
    found = list(SYMBOLS.search("percpu_*"))
    assert [tuple(symbol) for symbol in found] == [s for s in LISTING if s[0].startswith("percpu_")]
    assert len(list(SYMBOLS.search("*", limit=7))) == 7
    assert list(SYMBOLS.search("_te?t")) == [("_text", BASE, "T")]


def test_an_index_with_collisions_and_duplicates() -> None:
    # crc32(b"plumless") == crc32(b"buckeroo"): a known pair.
    assert crc32(b"plumless") == crc32(b"buckeroo")
    index = NameIndex(build_index([b"plumless", b"a", b"buckeroo", b"a"], [7, 8, 9, 10]))
    assert list(index.candidates(b"buckeroo")) == [7, 9]
    assert list(index.candidates(b"a")) == [8, 10]
    assert list(index.candidates(b"b")) == []
    assert len(index) == 4
    assert (
        len(NameIndex(b"")) == len(NameIndex(b"\xff" * 9)) == len(NameIndex(build_index([]))) == 0
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_sections_lose_symbols_and_raise_nothing(data: st.DataObject) -> None:
    parts = []
    for part in (TABLE.names, TABLE.offsets, TABLE.addresses, TABLE.index):
        copy = bytearray(part)
        for _ in range(data.draw(st.integers(0, 3))):
            position = data.draw(st.integers(0, len(copy) - 4))
            copy[position : position + 4] = data.draw(st.binary(min_size=4, max_size=4))
        del copy[data.draw(st.integers(0, len(copy))) :]
        parts.append(memoryview(copy))
    numbers = data.draw(st.tuples(st.integers(-5, 4000), st.integers(-5, 4000)))
    symbols = Symbols(SymbolTable(parts[0], parts[1], parts[2], parts[3], *numbers), BASE)
    for name, address, _ in LISTING[::97]:
        symbols.get(name)
        symbols.lookup(address)
    assert len(list(symbols)) == len(symbols)
    assert isinstance(list(symbols.search("*a*")), list)
