"""Counting pages that are the same, in made-up memories."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest

from virtintrospect.errors import TargetGoneError
from virtintrospect.insight import identical
from virtintrospect.insight.identical import PAGE, Free, identical_pages
from virtintrospect.memory import PhysicalMemory, Region

MIB = 1 << 20


class Pages(PhysicalMemory):
    """Memory of these pages; absent ones must not be asked for."""

    def __init__(self, pages: list[bytes | None]) -> None:
        self.pages = pages
        self.regions = (Region(0, len(pages) * PAGE),)
        self.reads = 0

    def _read_within(self, _index: int, paddr: int, size: int) -> bytes:
        page = self.pages[paddr // PAGE]
        assert page is not None, "an absent page was touched"
        self.reads += size
        return page[paddr % PAGE : paddr % PAGE + size]

    def resident(self) -> Iterator[Region]:
        for number, page in enumerate(self.pages):
            if page is not None:
                yield Region(number * PAGE, (number + 1) * PAGE)


def page() -> bytes:
    return os.urandom(PAGE)


def test_pages_of_two_guests_and_their_own() -> None:
    common, own = [page() for _ in range(40)], page()
    one = Pages([*common, None, own, own, own, bytes(PAGE), *(page() for _ in range(50))])
    two = Pages([None, *(page() for _ in range(30)), *common, bytes(PAGE), bytes(PAGE), None])
    first, second = identical_pages([one, two])
    # Of the 40 in common one stays: half a page saved for each of the two. Of three, two go.
    assert first.size == round(40 / 2 + 2) * PAGE
    assert second.size == 40 // 2 * PAGE
    assert (first.shared, second.shared) == (40 * PAGE, 40 * PAGE)
    assert (first.zero, second.zero) == (PAGE, 2 * PAGE)
    assert (first.looked_at, first.hashed) == (94, 93)


def test_many_pages_are_counted_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages of the same content are in the sample, or none."""
    monkeypatch.setattr(identical, "_MOST_HASHED", 256)
    common = [page() for _ in range(1500)]
    guests = [Pages([*common, *(page() for _ in range(1500))]) for _ in range(3)]
    for guest in guests:
        random.shuffle(guest.pages)
    for found in identical_pages(guests):
        assert found.shared == pytest.approx(1500 * PAGE, rel=0.4)
        assert found.size == pytest.approx(1000 * PAGE, rel=0.4)
        assert found.hashed < 512
    assert all(guest.reads < 3000 * 128 + 512 * PAGE + 256 * PAGE for guest in guests)


def test_large_guests_are_looked_at_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identical, "_MOST_PAGES", 100)
    monkeypatch.setattr(identical, "_RUN", 10)
    (found,) = identical_pages([Pages([page() for _ in range(1000)])])
    assert found.looked_at == 100


def test_pages_with_little_in_them() -> None:
    """Where the piece that is looked at tells nothing, the page is left out."""
    line = b"\xff" * PAGE
    sparse = bytes(PAGE - 8) + b"somewhat"
    first, second = identical_pages([Pages([line] * 9), Pages([line, bytes(PAGE), None])])
    assert (first.size, second.size, second.zero) == (0, 0, PAGE)
    assert identical_pages([Pages([sparse] * 4)])[0].zero == 0
    assert identical_pages([]) == []
    assert identical_pages([Pages([])])[0].looked_at == 0


def test_pages_that_a_guest_has_free_do_not_count() -> None:
    same = page()
    mask = np.array([False, True, True, False])
    memory = Pages([same] * 4)
    (found,) = identical_pages([memory], [Free(mask, PAGE)])
    assert (found.looked_at, found.size) == (2, PAGE)
    (found,) = identical_pages([memory], [Free(np.array([True]), 2 * PAGE)])
    assert (found.looked_at, found.size) == (2, PAGE)
    (found,) = identical_pages([memory], [None])
    assert (found.looked_at, found.size) == (4, 3 * PAGE)


def test_a_guest_that_goes_away_has_nothing() -> None:
    class Gone(Pages):
        def _read_within(self, _index: int, _paddr: int, _size: int) -> bytes:
            raise TargetGoneError("it ended")

    same = [page() for _ in range(5)]
    gone, left = identical_pages([Gone(list(same)), Pages(list(same))])
    assert (gone.size, left.size, left.shared) == (0, 0, 0)
