"""Searching memory made by hand: borders, gaps, patterns that make no sense."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.errors import UsageError
from virtintrospect.insight.patterns import compile_pattern
from virtintrospect.insight.search import search
from virtintrospect.insight.spans import physical_spans
from virtintrospect.memory import Region
from virtintrospect.model import Match

MIB = 1 << 20


class Sparse(BuiltMemory):
    """Memory of which only some ranges may be touched."""

    def __init__(self, *ranges: tuple[int, int]) -> None:
        super().__init__(4 * MIB)
        self.allowed = [Region(*each) for each in ranges]

    def resident(self) -> Iterator[Region]:
        yield from self.allowed

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        for page in range(paddr, paddr + size, 4096):
            assert any(r.start <= page < r.end for r in self.allowed), hex(page)
        return super()._read_within(index, paddr, size)


def found(
    memory: BuiltMemory, pattern: str | bytes, kind: str = "text", *, ignore_case: bool = False
) -> list[Match]:
    compiled = compile_pattern(pattern, kind, ignore_case=ignore_case)
    return list(search(memory.read, physical_spans(memory), compiled, virtual=False))


@pytest.fixture(params=["text", "hex", "regex", "yara", "bytes"])
def needle(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str | bytes, str]:
    rules = tmp_path / "rules.yar"
    rules.write_text('rule r { strings: $n = "needle" condition: $n }')
    kinds: dict[str, tuple[str | bytes, str]] = {
        "text": ("needle", "text"), "hex": ("6e 65 ?? 64 6c 65", "hex"),
        "regex": ("ne+dl[e]", "regex"), "yara": (str(rules), "yara"), "bytes": (b"needle", "text"),
    }  # fmt: skip
    return kinds[request.param]


def test_every_place_once(needle: tuple[str | bytes, str]) -> None:
    """Across the borders of pages, of pieces, and of ranges that touch."""
    memory = Sparse((0, 2 * MIB), (2 * MIB, 3 * MIB))
    places = [0, 4094, MIB - 3, MIB + 3, 2 * MIB - 1, 3 * MIB - 6]
    for place in places:
        memory.write(place, b"needle")
    matches = found(memory, *needle)
    assert [match.paddr for match in matches] == places
    assert {match.data for match in matches} == {b"needle"}
    assert {match.size for match in matches} == {6}
    assert {match.vaddr for match in matches} == {None}


def test_not_across_gaps() -> None:
    memory = Sparse((0, 4096), (8192, 12288))
    memory.write(4093, b"needle")  # half of it is not there
    memory.write(8189, b"needle")
    memory.write(12282, b"needle")
    assert [match.paddr for match in found(memory, "needle")] == [12282]


def test_stretches_that_touch_or_overlap() -> None:
    memory = Sparse((8192, 12288), (0, 8192), (4096, 6144), (16384, 20480))
    assert [(span.start, span.size) for span in physical_spans(memory).parts()] == [
        (0, 12288), (16384, 4096),
    ]  # fmt: skip
    assert physical_spans(memory).size() == 16384
    assert list(physical_spans(Sparse()).parts()) == []


def test_context_ends_with_memory() -> None:
    memory = Sparse((4096, 8192))
    memory.write(4096, b"needle in a haystack")
    memory.write(8186, b"needle")
    first, last = found(memory, "needle")
    assert (first.before, first.after) == (b"", b" in a haystack\0\0")
    assert (last.before, last.after) == (bytes(16), b"")


def test_text_in_both_encodings_and_cases() -> None:
    memory = Sparse((0, MIB))
    memory.write(100, "Größe".encode())
    memory.write(200, "Größe".encode("utf-16-le"))
    memory.write(300, "GRöße".encode())
    assert [(m.paddr, m.name) for m in found(memory, "Größe")] == [(100, "utf-8"), (200, "utf-16")]
    names = [(m.paddr, m.name) for m in found(memory, "Größe", ignore_case=True)]
    assert names == [(100, "utf-8"), (200, "utf-16"), (300, "utf-8")]


def test_long_matches_keep_their_size() -> None:
    memory = Sparse((0, 2 * MIB))
    memory.write(MIB - 1000, b"x" * 3000)
    (match,) = found(memory, "x+", "regex")
    assert (match.paddr, match.size, len(match.data)) == (MIB - 1000, 3000, 256)


def test_nothing_blows_up() -> None:
    """What takes exponential time elsewhere."""
    memory = Sparse((0, MIB))
    memory.write(0, b"a" * 4000)
    before = time.process_time()
    assert found(memory, "(a|aa)+$b", "regex") == []
    assert found(memory, "(a+)+b", "regex") == []
    assert time.process_time() - before < 5


def test_progress() -> None:
    memory = Sparse((0, 3 * MIB // 2))
    seen: list[tuple[int, int]] = []
    spans = physical_spans(memory)
    pattern = compile_pattern("x")
    list(search(memory.read, spans, pattern, virtual=False, progress=lambda *s: seen.append(s)))
    assert seen == [(MIB, 3 * MIB // 2), (3 * MIB // 2, 3 * MIB // 2)]


@pytest.mark.parametrize(
    ("pattern", "kind", "words"),
    [
        ("", "text", "empty"), ("abc", "hex", "pairs"), ("zz", "hex", "pairs"),
        ("?? ??", "hex", "everywhere"), ("(", "regex", "missing"), (r"(a)\1", "regex", "RE2"),
        ("./no/such/file", "yara", "cannot read"), ("x" * 5000, "text", "4096"),
        ("\udc80", "text", "--hex"), ("x", "glob", "there are"),
    ],
)  # fmt: skip
def test_patterns_that_make_no_sense(pattern: str, kind: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        compile_pattern(pattern, kind)
    assert words in f"{caught.value} {caught.value.hint}"


def test_rules_that_make_no_sense(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yar"
    for content in (b"rule {", b"\xff\xfe", b"rule a { condition: nothing }"):
        rules.write_bytes(content)
        with pytest.raises(UsageError):
            compile_pattern(str(rules), "yara")


@pytest.mark.parametrize(("module", "kind"), [("re2", "regex"), ("yara", "yara")])
def test_libraries_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, module: str, kind: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UsageError, match="need") as caught:
        compile_pattern("x", kind)
    assert "virtintrospect[search]" in caught.value.hint
