"""Small rules of the kernel that the tables repeat."""

from __future__ import annotations

import pytest

from virtintrospect.guests.linux.cputime import adjust
from virtintrospect.guests.linux.state import state_letter
from virtintrospect.insight.tree import as_tree


@pytest.mark.parametrize(
    ("state", "exit_state", "letter"),
    [
        (0, 0, "R"), (1, 0, "S"), (2, 0, "D"), (4, 0, "T"), (8, 0, "t"), (0, 0x10, "X"),
        (0, 0x20, "Z"), (0x40, 0, "P"), (0x402, 0, "I"), (0x80, 0x20, "Z"),
        (0x1000, 0, "D"), (0x8000, 0, "D"), (0x2001, 0, "S"), (0x100 | 4, 0, "T"),
    ],
)  # fmt: skip
def test_state_letters(state: int, exit_state: int, letter: str) -> None:
    assert state_letter(state, exit_state) == letter


@pytest.mark.parametrize(
    ("utime", "stime", "runtime", "prev", "expected"),
    [
        (0, 0, 500, (0, 0), (500, 0)),  # no tick hit it: counted as user time
        (0, 10, 500, (0, 0), (0, 500)),
        (10, 0, 500, (0, 0), (500, 0)),
        (10, 30, 400, (0, 0), (100, 300)),  # in the sampled ratio
        (10, 30, 400, (200, 100), (200, 200)),  # what was shown never falls
        (10, 30, 400, (0, 350), (50, 350)),
        (10, 30, 100, (200, 100), (200, 100)),  # the clock went behind: as shown before
    ],
)
def test_cputime_adjust(
    utime: int, stime: int, runtime: int, prev: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert adjust(utime, stime, runtime, *prev) == expected


def _row(pid: int, parent: int) -> dict[str, object]:
    return {"pid": pid, "parent": parent, "name": b"p%d" % pid}


def test_tree_puts_children_below_their_parents() -> None:
    rows = [_row(1, 0), _row(2, 0), _row(3, 1), _row(4, 2), _row(5, 3)]
    assert [row["pid"] for row in as_tree(rows, indent=False)] == [1, 3, 5, 2, 4]
    assert [row["name"] for row in as_tree(rows, indent=True)][:3] == [b"p1", b"  p3", b"    p5"]


def test_tree_survives_circles_and_strangers() -> None:
    rows = [_row(1, 0), _row(7, 8), _row(8, 7), _row(9, 9), _row(10, 4000)]
    ordered = as_tree(rows, indent=True)
    assert sorted(row["pid"] for row in ordered) == [1, 7, 8, 9, 10]


def test_tree_keeps_threads_with_their_process() -> None:
    rows = [_row(1, 0), _row(2, 1), _row(2, 1), _row(3, 2)]
    assert [row["pid"] for row in as_tree(rows, indent=False)] == [1, 2, 3, 2]
