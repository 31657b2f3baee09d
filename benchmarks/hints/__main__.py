"""``python -m benchmarks.hints [PART …]``: whether hints are right.

Guests whose need is known are brought into states; what is recommended is compared with their
need, and with what others would have said. Results are kept in build/hints, so that a run that
was interrupted goes on where it was (``--fresh``: from the start); at the end docs/hints.md gets
its table and plots anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.hints import (
    cost,
    cpus,
    held,
    leaks,
    picture,
    report,
    sizes,
    slowdown,
    squeeze,
)
from benchmarks.hints.store import Store
from tests.guests.lab import libvirtd
from tests.guests.lab.domain import sweep

PARTS: dict[str, Callable[[Store], None]] = {
    "sizes": sizes.main,
    "held": held.main,
    "leaks": leaks.main,
    "cpus": cpus.main,
    "squeeze": squeeze.main,
    "slowdown": slowdown.main,
    "cost": cost.main,
    "picture": picture.main,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts that are asked for, or all, and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hints", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join([*PARTS, "report"]))
    parser.add_argument("--results", type=Path, default=Path("build/hints/results.jsonl"))
    parser.add_argument("--fresh", action="store_true", help="measure all anew")
    chosen = parser.parse_args(arguments)
    if not set(chosen.parts) <= {*PARTS, "report"}:
        parser.error(f"parts are {', '.join([*PARTS, 'report'])}")
    if chosen.fresh:
        chosen.results.unlink(missing_ok=True)
    store = Store(chosen.results)
    wanted = [name for name in PARTS if name in (chosen.parts or PARTS)]
    if wanted:
        _measure(store, wanted)
    report.main(store)


def _measure(store: Store, wanted: list[str]) -> None:
    with libvirtd.connection() as connection:
        sweep(connection)  # what a run left that was ended by force
        for name in wanted:
            PARTS[name](store)


if __name__ == "__main__":
    main()
