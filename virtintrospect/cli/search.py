"""``search``: find bytes, text, expressions and YARA's strings in guest memory."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from virtintrospect.cli.options import Settings, common, pass_settings, target_argument
from virtintrospect.insight.tables import SEARCH

if TYPE_CHECKING:
    from virtintrospect.insight.search import Progress
    from virtintrospect.model import Match


@click.command("search")
@target_argument
@click.argument("pattern")
@click.option("--hex", "kind", flag_value="hex", help="PATTERN is bytes: 'de ad ?? ef'.")
@click.option("--regex", "kind", flag_value="regex", help="PATTERN is an expression as of RE2.")
@click.option("--yara", "kind", flag_value="yara", help="PATTERN is a file with YARA rules.")
@click.option("-i", "--ignore-case", is_flag=True, help="Upper or lower case, of ASCII letters.")
@click.option("--pid", type=int, metavar="PID", help="Only in the memory of this process.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N",
    help="Stop after so many matches.",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(0, 4096), default=16, show_default=True, metavar="BYTES",
    help="How much to show before and behind a match.",
)  # fmt: skip
@common
@pass_settings
def search(
    settings: Settings,
    target: str,
    pattern: str,
    *,
    kind: str | None,
    ignore_case: bool,
    pid: int | None,
    limit: int,
    context: int,
) -> None:
    """Find PATTERN in the memory of TARGET: text, as UTF-8 and as UTF-16, unless told otherwise.

    All guest-physical memory is searched, or that of one process. A match is found across the
    borders of pages; where memory has a gap, it ends. Pages that the host does not hold are not
    touched. Expressions and rules need `pip install 'virtintrospect[search]'`.

    \b
    virt-introspect search web01 'BEGIN RSA PRIVATE KEY'
    virt-introspect search web01 --pid 812 --regex 'session=[0-9a-f]{32}' -o json
    virt-introspect search ./web01.core --hex '7f 45 4c 46 02 ?? 01' --limit 10
    virt-introspect search web01 --yara rules.yar
    """
    with settings.open(target, SEARCH) as session, ExitStack() as stack:
        found = session.search(
            pattern,
            kind or "text",
            ignore_case=ignore_case,
            pid=pid,
            context=context,
            progress=_bar(stack) if sys.stderr.isatty() else None,
        )
        rows = [_row(match) for match in islice(found, limit + 1)]
        guest = session.last
    settings.show(SEARCH, rows[:limit])
    if guest is not None:
        settings.report(guest)
    if len(rows) > limit:
        settings.warn([(f"only the first {limit} matches are shown; --limit gives more", 0)])


def _row(match: Match) -> dict[str, Any]:
    """A match as a row; on its line people see its bytes in their context."""
    address = match.paddr if match.vaddr is None else match.vaddr
    return {
        "address": address, "paddr": match.paddr, "size": match.size, "match": match.name,
        "before": match.before, "data": match.data, "after": match.after,
        "text": _dots(match.before) + _dots(match.data) + _dots(match.after),
    }  # fmt: skip


def _dots(data: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)


def _bar(stack: ExitStack) -> Progress:
    """A progress bar on standard error, gone when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    bars = stack.enter_context(
        Bars(
            BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
            TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )
    )  # fmt: skip
    task = bars.add_task("search", total=None)

    def progress(done: int, total: int) -> None:
        bars.update(task, completed=done, total=total)

    return progress
