"""Searching a process of hand-made page tables: windows, pages in pieces, tables without end."""

from __future__ import annotations

import random
import threading
import tracemalloc
from itertools import islice, pairwise
from pathlib import Path

import pytest

from tests.unit.images import BuiltMemory, PageTables
from tests.unit.test_search import Sparse
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.arch.arm import ARM_SHORT
from virtintrospect.arch.paging import PagingMode
from virtintrospect.arch.riscv import SV39
from virtintrospect.insight import spans as spans_module
from virtintrospect.insight.patterns import LONGEST, compile_pattern
from virtintrospect.insight.search import search
from virtintrospect.insight.spans import PIECE, Spans, virtual_spans
from virtintrospect.model import Match
from virtintrospect.space import AddressSpace

MIB = 1 << 20
BASE = 0x40_0000


class Notes(list[tuple[str, int]]):
    """What was noted."""

    def __call__(self, what: str, address: int) -> None:
        self.append((what, address))


def spans_of(
    memory: BuiltMemory, root: int, notes: Notes | None = None, mode: PagingMode = X86_64_4LEVEL
) -> Spans:
    end = 1 << (mode.virtual_bits - 1)
    return virtual_spans(AddressSpace(memory, mode, root), end, Notes() if notes is None else notes)


def ranges(spans: Spans) -> list[tuple[int, int]]:
    """Where each search begins and ends."""
    return [(span.start + span.first, span.start + span.last) for span in spans.parts()]


def windows_of(monkeypatch: pytest.MonkeyPatch, tables: int, pieces: int) -> None:
    monkeypatch.setattr("virtintrospect.arch.leaves._AT_ONCE", tables)
    monkeypatch.setattr("virtintrospect.insight.spans._PIECES_AT_ONCE", pieces)


def test_a_process_is_searched_by_its_own_addresses() -> None:
    memory = Sparse((0, 0x10_0000))
    tables = PageTables(memory, X86_64_4LEVEL, 0x1000)
    for number, paddr in enumerate((0x5_0000, 0x3_0000, 0x20_0000, 0x4_0000)):
        tables.map(BASE + number * 4096, paddr)  # the third is not resident
    memory.write(0x5_0FFD, b"nee")
    memory.write(0x3_0000, b"dle")
    memory.write(0x4_0000, b"needle")
    spans = spans_of(memory, tables.root)
    assert ranges(spans) == [(BASE, BASE + 0x2000), (BASE + 0x3000, BASE + 0x4000)]
    assert spans.size() == 0x3000
    matches = list(search(memory.read, spans, compile_pattern("needle"), virtual=True))
    assert [(match.vaddr, match.paddr) for match in matches] == [
        (BASE + 0xFFD, 0x5_0FFD), (BASE + 0x3000, 0x4_0000),
    ]  # fmt: skip


def test_a_large_page_of_which_the_host_has_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Sparse((0, 0x8000), (0x20_0000, 0x20_1000), (0x20_2000, 0x20_4000))
    memory.write_u64(0x1000, 0x2067)
    memory.write_u64(0x2000, 0x3067)
    memory.write_u64(0x3000, 0, 0x20_00E7)
    memory.write(0x20_3000, b"needle")
    for pieces in (1 << 17, 1):
        windows_of(monkeypatch, 1024, pieces)
        spans = spans_of(memory, 0x1000)
        assert ranges(spans) == [(0x20_0000, 0x20_1000), (0x20_2000, 0x20_4000)]
        assert spans.size() == 0x3000
        (match,) = search(memory.read, spans, compile_pattern("needle"), virtual=True)
        assert (match.vaddr, match.paddr) == (0x20_3000, 0x20_3000)


def test_large_and_small_pages_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are read a level at a time: a large page waits for the small ones before it."""
    memory = BuiltMemory(8 * MIB)
    tables = PageTables(memory, X86_64_4LEVEL, 0x1000)
    wanted = []
    for number in range(60):
        vaddr = number * (2 << 20) + (number % 7 << 30)
        size = 2 << 20 if number % 3 else 4096
        tables.map(vaddr, 2 * MIB if number % 3 else number * 4096, size=size)
        wanted.append((vaddr, size))
    for at_once in (1024, 3, 1):
        windows_of(monkeypatch, at_once, 16)
        monkeypatch.setattr(spans_module, "_MOST_MAPPED", 100)
        found = ranges(spans_of(memory, tables.root))
        covered = {at for start, end in found for at in range(start, end, 4096)}
        assert covered == {at for v, size in wanted for at in range(v, v + size, 4096)}
        assert found == sorted(found)
        assert all(a[1] <= b[0] for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("mode", "entries"),
    [
        (SV39, [1 << 63 | 0x88 << 10 | 0xC7] * 16),  # Svnapot
        (ARM_SHORT, [0x8_0001] * 16),
    ],
    ids=["riscv", "arm"],
)
def test_a_page_of_several_entries(mode: PagingMode, entries: list[int]) -> None:
    """64 KiB, said sixteen times over: once in what is searched."""
    memory = BuiltMemory(MIB)
    space = AddressSpace(memory, mode, 0x4000)
    table = 0x4000
    for number, level in enumerate(mode.levels):
        slot = table + mode.entry_size * (BASE >> level.shift & (1 << level.bits) - 1)
        if number + 1 == len(mode.levels):
            for index, entry in enumerate(entries):
                place = slot + mode.entry_size * index
                memory.write(place, entry.to_bytes(mode.entry_size, "little"))
        else:
            table = 0x8000 + number * 4096
            entry = table | 1 if mode is ARM_SHORT else table >> 2 | 1
            memory.write(slot, entry.to_bytes(mode.entry_size, "little"))
    (span,) = spans_of(memory, 0x4000, mode=mode).parts()
    assert (span.start, span.size) == (BASE, 0x1_0000)
    assert (span.vaddr.tolist(), span.paddr.tolist()) == ([BASE], [space.translate(BASE)])


def scattered(pages: int) -> tuple[BuiltMemory, int]:
    """A process of pages that lie anywhere in memory, with a gap now and then."""
    memory = BuiltMemory((pages + 64) * 4096)
    tables = PageTables(memory, X86_64_4LEVEL, 0x1000)
    order = list(range(64, 64 + pages))
    random.Random(1).shuffle(order)
    for number, frame in enumerate(order):
        tables.map(BASE + (number + number // 700) * 4096, frame * 4096)
    return memory, tables.root


@pytest.fixture(params=["text", "hex", "regex", "yara", "bytes"])
def needle(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str | bytes, str]:
    rules = tmp_path / "rules.yar"
    rules.write_text("rule r { strings: $n = /nee[a-z]{1,40}dle/ condition: $n }")
    kinds: dict[str, tuple[str | bytes, str]] = {
        "text": ("needleneedle", "text"), "hex": ("6e 65 ?? 64 6c 65", "hex"),
        "regex": ("(ne+dle)+|x{3,}", "regex"), "yara": (str(rules), "yara"),
        "bytes": (b"needle", "text"),
    }  # fmt: skip
    return kinds[request.param]


def test_windows_change_nothing(
    needle: tuple[str | bytes, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matches over the borders of windows, chains of them, and what is longer than a piece."""
    memory, root = scattered(1800)
    space = AddressSpace(memory, X86_64_4LEVEL, root)

    def put(vaddr: int, data: bytes) -> None:
        for at, byte in enumerate(data):
            memory.data[space.translate(vaddr + at)] = byte

    end = BASE + 700 * 4096
    for place in (BASE, BASE + 511 * 4096 - 5, BASE + 512 * 4096 - 3, end - 6, end + 4096):
        put(place, b"needle")
    put(BASE + 127 * 4096 + 4090, b"needle" * 8)
    put(BASE + PIECE - 13, b"needle" * 800)
    put(BASE + 2 * PIECE - 5000, b"x" * 3 * LONGEST)
    put(BASE + 1200 * 4096 - 2, b"needle")
    for number in range(0, 1700, 3):
        put(BASE + (number + number // 700) * 4096 + 4000, b"needle")
    pattern = compile_pattern(*needle)

    def look(context: int) -> list[Match]:
        spans = spans_of(memory, root)
        return list(search(memory.read, spans, pattern, virtual=True, context=context))

    for context in (16, 5000):
        windows_of(monkeypatch, 1024, 1 << 17)
        whole = look(context)
        assert len(whole) > 100
        for pieces in (1, 7, 513):
            windows_of(monkeypatch, 1, pieces)
            assert look(context) == whole


def test_progress_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, root = scattered(900)
    windows_of(monkeypatch, 1, 100)
    seen: list[tuple[int, int]] = []
    list(
        search(
            memory.read, spans_of(memory, root), compile_pattern("x"), virtual=True,
            progress=lambda *both: seen.append(both),
        )
    )  # fmt: skip
    total = 900 * 4096
    assert seen[-1] == (total, total)
    assert {both[1] for both in seen} == {total}
    assert [both[0] for both in seen] == sorted({both[0] for both in seen})


def test_tables_are_read_while_nobody_else_reads() -> None:
    memory, root = scattered(10)
    lock = threading.Lock()

    class Watched(BuiltMemory):
        def _read_within(self, index: int, paddr: int, size: int) -> bytes:
            assert lock.locked()
            return memory._read_within(index, paddr, size)

    space = AddressSpace(Watched(len(memory.data)), X86_64_4LEVEL, root)
    spans = virtual_spans(space, 1 << 47, Notes(), lock)
    for _ in spans.parts():
        assert not lock.locked()
    assert spans.size() == 10 * 4096


@pytest.mark.parametrize("seed", range(3))
def test_tables_that_are_noise(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of what they map, in order, and nothing twice."""
    monkeypatch.setattr(spans_module, "_MOST_MAPPED", 1 << 30)
    memory = BuiltMemory(MIB)
    noise = random.Random(seed)
    for page in range(256):
        for slot in range(512):
            if noise.random() < 0.02:
                frame, leaf = noise.randrange(256) << 12, noise.choice((0, 0x80))
                kept = ~frame & 0xF_FFFF_FFFF_F000 | 0x100  # of a page that nobody may touch
                entry = noise.choice((frame | 0x67, kept)) | leaf
                memory.write_u64(page * 4096 + slot * 8, entry)
    notes = Notes()
    found = ranges(spans_of(memory, 0x1000, notes))
    assert found
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    pages = AddressSpace(memory, X86_64_4LEVEL, 0x1000).pages(end=1 << 47)
    places = zip(pages.paddr.tolist(), pages.shift.tolist(), strict=True)
    there = sum(max(0, min(paddr + (1 << shift), MIB) - paddr) for paddr, shift in places)
    assert sum(end - start for start, end in found) == there > MIB
    assert notes == []


def test_a_process_that_maps_without_end() -> None:
    """Tables that are their own next level: what is found is told, and where it stopped."""
    memory = Sparse((0, MIB))
    memory.write_u64(0x1000, *[0x1067] * 511)
    memory.write(0x1FF8, b"bdfhjl")  # where the last entry is: no page
    notes = Notes()
    spans = spans_of(memory, 0x1000, notes)
    matches = list(search(memory.read, spans, compile_pattern("bdfhjl"), virtual=True))
    most = 4 * memory.size
    pages = (page for page in range(1 << 18) if 511 not in (page & 511, page >> 9))
    *wanted, behind = islice(pages, most // 4096 + 1)
    assert [match.vaddr for match in matches] == [page * 4096 + 0xFF8 for page in wanted]
    ((what, address),) = notes
    assert what.startswith("the search stopped after 16 MiB of the process: more than 4 times")
    assert address == behind * 4096
    assert spans.size() == most
    assert len(notes) == 1  # to count is not to search


@pytest.mark.parametrize(("root", "times"), [(0x4000, 8), (0x2000, 1)])
def test_large_pages_over_and_over(root: int, times: int) -> None:
    """Of 2 MiB, and of 1 GiB, which is more than all that is searched."""
    memory = Sparse((0, MIB))
    memory.write_u64(0x4000, 0x2067)
    memory.write_u64(0x2000, 0x3067)
    memory.write_u64(0x3000, *[0xE7] * 512)
    memory.write(0x5_0000, b"needle")
    notes = Notes()
    spans = spans_of(memory, root, notes)
    found = list(search(memory.read, spans, compile_pattern("needle"), virtual=True))
    places = [number * 2 * MIB + 0x5_0000 for number in range(times)]
    assert [match.vaddr for match in found] == places
    assert [address for _, address in notes] == [16 * MIB]


def test_few_pages_of_many_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = BuiltMemory(MIB)
    memory.write_u64(0x1000, *[0x2067] * 512)
    memory.write_u64(0x2000, *[0x3067] * 512)
    memory.write_u64(0x3000, *[0x4067] * 512)
    memory.write_u64(0x4000, 0x5067)
    notes = Notes()
    monkeypatch.setattr(spans_module, "_MOST_MAPPED", 1 << 20)
    list(spans_of(memory, 0x1000, notes).parts())
    ((what, address),) = notes
    assert "more page tables" in what
    assert 0 < address < 1 << 47


def test_memory_does_not_grow_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^20 pages of one table: all at once they would take 100 MB."""
    memory = BuiltMemory(MIB)
    memory.write_u64(0x1000, *[0x1067] * 512)
    monkeypatch.setattr(spans_module, "_MOST_MAPPED", 4096)
    windows_of(monkeypatch, 16, 1 << 13)
    notes = Notes()
    tracemalloc.start()
    try:
        pages = (
            sum(span.last - span.first for span in spans_of(memory, 0x1000, notes).parts()) // 4096
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pages == 1 << 20
    assert [address for _, address in notes] == [4 << 30]
    assert peak < 16 << 20
