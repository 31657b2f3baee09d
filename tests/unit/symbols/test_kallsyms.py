"""kallsyms in every format that kernels have had; all images here are synthetic."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.symbols.kallsyms_image import (
    BASE,
    VARIANTS,
    Listing,
    Variant,
    make_image,
    make_symbols,
    make_tokens,
)
from virtintrospect.errors import GuestNotRecognisedError, VirtIntrospectError
from virtintrospect.symbols.kallsyms import decode, find_tables
from virtintrospect.symbols.table import Symbols
from virtintrospect.symbols.vmcoreinfo import VmCoreInfo

NEW = VARIANTS["6.4-6.14 per-CPU"]
SYMBOLS = make_symbols(NEW)
IMAGE, AT = make_image(NEW, SYMBOLS)
PLACE = VARIANTS["7.0 place-relative"]
PLACE_IMAGE, PLACE_AT = make_image(PLACE, make_symbols(PLACE))


def listed(image: bytes | bytearray, base: int = BASE) -> Listing:
    tables = find_tables(bytes(image), base)
    return [(s.name, s.address, s.type) for s in Symbols(decode(bytes(image), tables), base)]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_format_gives_every_symbol(name: str) -> None:
    variant = VARIANTS[name]
    symbols = make_symbols(variant)
    image, at = make_image(variant, symbols)
    tables = find_tables(bytes(image), variant.base)
    table = decode(bytes(image), tables)
    assert [tuple(symbol) for symbol in Symbols(table, variant.base)] == symbols
    assert (tables.names, tables.num_syms) == (at["kallsyms_names"], len(symbols))
    assert tables.token_table == at["kallsyms_token_table"]
    assert tables.byteorder == variant.byteorder


@pytest.mark.parametrize("count", [511, 512, 513, 256 * 9, 256 * 9 + 1])
@pytest.mark.parametrize("order", ["old", "new"])
def test_every_number_of_symbols_around_a_marker(count: int, order: str) -> None:
    variant = Variant(order, 3, "percpu")
    symbols = make_symbols(variant, count)
    assert listed(make_image(variant, symbols)[0]) == symbols


def test_tables_that_only_4_divides_are_found_wherever_they_fall() -> None:
    seen: set[tuple[str, int]] = set()
    for skew in (0, 4):
        for count in (600, 601, 900, 901):
            variant = Variant("new", 3, "place", align=4, skew=skew)
            symbols = make_symbols(variant, count)
            image, at = make_image(variant, symbols)
            seen.update((name, position % 8) for name, position in at.items())
            assert listed(image) == symbols
    assert {("kallsyms_token_index", 4), ("kallsyms_offsets", 4), ("kallsyms_names", 4)} <= seen


def test_what_follows_the_markers_may_look_like_one_more() -> None:
    variant = Variant("old", 3, "percpu")
    symbols = make_symbols(variant, 256 * 9)
    image, at = make_image(variant, symbols)
    start, end = at["kallsyms_markers"], at["kallsyms_seqs_of_names"]
    assert end - start == 4 * 10  # there is no padding
    last = int.from_bytes(image[end - 4 : end], "little")
    image[end : end + 4] = (last + 3000).to_bytes(4, "little")
    assert listed(image) == symbols


def test_the_slide_moves_the_image_and_nothing_else() -> None:
    slid = Variant("new", 3, "percpu", base=BASE + 0x1C00000)
    symbols = make_symbols(slid)
    image, _ = make_image(slid, symbols)
    table = decode(bytes(IMAGE), find_tables(bytes(IMAGE), BASE))
    assert [tuple(symbol) for symbol in Symbols(table, slid.base)] == symbols
    assert decode(bytes(image), find_tables(bytes(image), slid.base)) == table


def test_vmcoreinfo_only_helps() -> None:
    for address in (BASE + AT["kallsyms_token_table"], BASE + 5, BASE - 1, 0):
        info = VmCoreInfo({"SYMBOL(kallsyms_token_table)": f"{address:x}"})
        assert find_tables(bytes(IMAGE), BASE, vmcoreinfo=info).num_syms == len(SYMBOLS)
    nonsense = VmCoreInfo({"SYMBOL(kallsyms_token_table)": "?"})
    assert find_tables(bytes(IMAGE), BASE, vmcoreinfo=nonsense).num_syms == len(SYMBOLS)


def test_a_decoy_token_table_is_passed_over() -> None:
    decoy, _ = make_image(NEW, make_symbols(NEW, 700), make_tokens(SYMBOLS))
    tokens = bytes(IMAGE[AT["kallsyms_token_table"] : AT["kallsyms_offsets"]])
    image = bytearray(IMAGE)
    image[0x800 : 0x800 + len(tokens)] = tokens
    assert listed(image) == SYMBOLS
    assert len(decoy) < len(IMAGE)


@pytest.mark.parametrize(
    ("table", "word", "message"),
    [
        ("kallsyms_token_index", 7, "no token table"),
        ("kallsyms_markers", 3, "no markers and names"),
        ("kallsyms_num_syms", 0, "no markers and names"),
        ("kallsyms_offsets", 900, "no addresses"),
        ("kallsyms_relative_base", 0, "no addresses"),
    ],
)
def test_tables_that_disagree_are_refused_by_name(table: str, word: int, message: str) -> None:
    image = bytearray(IMAGE)
    position = AT[table] + 4 * word
    image[position : position + 4] = b"\x07\x70\x70\x70"
    with pytest.raises(GuestNotRecognisedError, match=message):
        find_tables(bytes(image), BASE)


def test_a_wrong_base_is_refused() -> None:
    tables = find_tables(bytes(IMAGE), BASE - 0x10000)
    with pytest.raises(GuestNotRecognisedError, match="_text is at"):
        decode(bytes(IMAGE), tables)
    for base in (0, 0x1000, 1 << 64, 0xFFFFFFFFF0000000):
        with pytest.raises(GuestNotRecognisedError):
            find_tables(bytes(IMAGE), base)


def test_an_image_without_tables() -> None:
    for image in (b"", bytes(100), bytes(1 << 20), random.Random(1).randbytes(1 << 20)):
        with pytest.raises(GuestNotRecognisedError, match="no token table"):
            find_tables(image, BASE)


def test_sources_are_the_same_on_every_boot_and_change_with_every_symbol() -> None:
    tables = find_tables(bytes(IMAGE), BASE)
    slid = Variant("new", 3, "percpu", base=BASE + 0x200000)
    image, _ = make_image(slid, make_symbols(slid))
    assert find_tables(bytes(image), slid.base).sources(bytes(image)) == tables.sources(
        bytes(IMAGE)
    )
    covered: set[int] = set()
    for start, content in tables.sources(bytes(IMAGE)):
        covered.update(range(start, start + len(content)))
    for name in ("names", "offsets", "token_table", "token_index", "num_syms", "markers"):
        assert AT[f"kallsyms_{name}"] in covered, name


def test_what_sources_cannot_vouch_for_has_none() -> None:
    absolute = VARIANTS["6.4 absolute"]
    image, _ = make_image(absolute, make_symbols(absolute))
    assert find_tables(bytes(image), BASE).sources(bytes(image)) == []
    # The relative base is relocated, so in no source: an unusual one shifts every symbol.
    forged = bytearray(IMAGE)
    at = AT["kallsyms_relative_base"]
    forged[at : at + 8] = (BASE + 0x1000).to_bytes(8, "little")
    tables = find_tables(bytes(forged), BASE)
    assert tables.sources(bytes(forged)) == []
    with pytest.raises(GuestNotRecognisedError, match="_text is at"):
        decode(bytes(forged), tables)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_gives_symbols_or_a_typed_error(data: st.DataObject) -> None:
    place = data.draw(st.booleans())
    image, at = (bytearray(PLACE_IMAGE), PLACE_AT) if place else (bytearray(IMAGE), AT)
    table = data.draw(st.sampled_from(sorted(at)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = at[table] + data.draw(st.integers(-16, 600))
        junk = data.draw(st.binary(min_size=1, max_size=12))
        image[start : start + len(junk)] = junk
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image))) :]
    try:
        symbols = Symbols(decode(bytes(image), find_tables(bytes(image), BASE)), BASE)
    except VirtIntrospectError:
        return
    assert all(symbols.lookup(symbol.address) for symbol in list(symbols)[:50])
