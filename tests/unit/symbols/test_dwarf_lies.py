"""DWARF that no compiler writes: circles, entries across each other, depth, nonsense."""

from __future__ import annotations

import time

import pytest

from tests.unit.symbols.dwarf_blob import (
    ARRAY,
    BASE,
    CONST,
    ENCODING,
    FUNCTION,
    MEMBER,
    NAME,
    PARAMETER,
    PLACE,
    POINTER,
    SIBLING,
    SIZE,
    STRUCT,
    TYPE,
    TYPEDEF,
    Dwarf,
)
from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.dwarf import read_types


def refused(blob: Dwarf, why: str) -> None:
    start = time.process_time()
    with pytest.raises(CorruptDataError, match=why):
        read_types(blob.sections(), "<")
    assert time.process_time() - start < 5


def test_a_plain_one() -> None:
    """That the refusals below are for what they say."""
    blob = Dwarf()
    number = blob.add(BASE, {NAME: b"int", SIZE: 4, ENCODING: 5})
    blob.add(STRUCT, {NAME: b"pair", SIZE: 8}, children=True)
    blob.add(MEMBER, {NAME: b"one", TYPE: number, PLACE: 0})
    blob.add(MEMBER, {NAME: b"two", TYPE: number, PLACE: 4})
    blob.up()
    types = Btf.parse(read_types(blob.sections(), "<"))
    assert types.offsetof("pair", "two") == 4
    assert types.resolve("pair", "one")[0].signed


def test_a_struct_that_contains_a_pointer_to_itself_is_no_circle() -> None:
    blob = Dwarf()
    pointer = blob.add(POINTER, {TYPE: blob.here + 5})
    assert blob.here == pointer + 5
    blob.add(STRUCT, {NAME: b"node", SIZE: 8}, children=True)
    blob.add(MEMBER, {NAME: b"next", TYPE: pointer, PLACE: 0})
    blob.up()
    types = Btf.parse(read_types(blob.sections(), "<"))
    assert [hop.offset for hop in types.resolve("node", "next.next.next")] == [0, 0, 0]


@pytest.mark.parametrize("tag", [POINTER, CONST, ARRAY])
def test_types_that_refer_to_themselves(tag: int) -> None:
    blob = Dwarf()
    at = blob.add(tag, {TYPE: blob.here}, children=tag == ARRAY)
    if tag == ARRAY:
        blob.up()
    blob.add(TYPEDEF, {NAME: b"circle", TYPE: at})
    refused(blob, "circle")


def test_a_function_that_takes_itself() -> None:
    blob = Dwarf()
    at = blob.add(FUNCTION, {}, children=True)
    blob.add(PARAMETER, {TYPE: at})
    blob.up()
    blob.add(TYPEDEF, {NAME: b"circle", TYPE: at})
    refused(blob, "circle")


def test_a_typedef_of_itself_ends_when_it_is_looked_at() -> None:
    blob = Dwarf()
    blob.add(TYPEDEF, {NAME: b"itself", TYPE: blob.here})
    types = Btf.parse(read_types(blob.sections(), "<"))
    with pytest.raises(CorruptDataError, match="circle"):
        types.sizeof("itself")


def test_structs_that_share_their_members() -> None:
    """Each struct claims all that follows for its own: as many steps as the square of them."""
    blob = Dwarf()
    number = blob.add(BASE, {NAME: b"int", SIZE: 4, ENCODING: 5})
    for index in range(3000):
        name = b"s%d" % index
        after = blob.here + 1 + len(name) + 1 + 4 + 4
        blob.add(STRUCT, {NAME: name, SIZE: 4, SIBLING: after}, children=True)
    for index in range(3000):
        blob.add(MEMBER, {NAME: b"m%d" % index, TYPE: number, PLACE: 0})
    refused(blob, "across each other")


def test_depth_without_end() -> None:
    blob = Dwarf()
    for _ in range(100_000):
        blob.add(STRUCT, {SIZE: 4}, children=True)
    refused(blob, "nested too deeply")


def test_a_sibling_that_lies_before_its_entry() -> None:
    blob = Dwarf()
    at = blob.add(STRUCT, {NAME: b"one", SIZE: 4}, children=True)
    blob.up()
    blob.add(STRUCT, {NAME: b"two", SIZE: 4, SIBLING: at}, children=True)
    blob.up()
    refused(blob, "lies before it")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({NAME: b"far", TYPE: 0x7FFF_FFFF, PLACE: 0}, "not read yet"),
        ({NAME: b"wide", PLACE: 0x7FFF_FFFF}, "impossible place"),
    ],
)
def test_members_that_lie(values: dict[int, int | bytes], why: str) -> None:
    blob = Dwarf()
    blob.add(STRUCT, {NAME: b"one", SIZE: 4}, children=True)
    blob.add(MEMBER, values)
    blob.up()
    refused(blob, why)


def test_more_members_than_btf_can_count() -> None:
    blob = Dwarf()
    blob.add(STRUCT, {NAME: b"one", SIZE: 4}, children=True)
    for _ in range(1 << 16):
        blob.add(MEMBER, {NAME: b"m", PLACE: 0})
    blob.up()
    refused(blob, "impossibly many members")


def test_nothing_in_it() -> None:
    refused(Dwarf(), "no types")


@pytest.mark.parametrize("size", range(0, 64, 3))
def test_cut_off_anywhere(size: int) -> None:
    blob = Dwarf()
    number = blob.add(BASE, {NAME: b"int", SIZE: 4, ENCODING: 5})
    blob.add(STRUCT, {NAME: b"pair", SIZE: 8}, children=True)
    blob.add(MEMBER, {NAME: b"one", TYPE: number, PLACE: 0})
    blob.up()
    sections = blob.sections()
    for cut in (
        sections._replace(info=sections.info[:size]),
        sections._replace(abbreviations=sections.abbreviations[:size]),
    ):
        try:
            Btf.parse(read_types(cut, "<"))
        except CorruptDataError:
            continue
