"""One line of output: what was measured, and what it must reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Figure(NamedTuple):
    """What was measured, in which unit, what it must reach, what it compares to."""

    what: str
    value: float
    unit: str
    target: str = ""
    ratio: str = ""


def show(title: str, figures: Iterator[Figure]) -> None:
    """Print figures as they come."""
    print(f"\n{title}", flush=True)
    for figure in figures:
        line = f"  {figure.what:<46} {figure.value:>10.4g} {figure.unit:<5}"
        print(f"{line} {figure.target:<14} {figure.ratio}".rstrip(), flush=True)
