"""``top``: guests, or the processes of one, as they change."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import click

from virtintrospect.cli.options import (
    Settings,
    common,
    complete_target,
    pass_settings,
    target_options,
)
from virtintrospect.errors import UsageError

if TYPE_CHECKING:
    from virtintrospect.cli.topviews import Look


@click.command("top")
@click.argument("target", required=False, shell_complete=complete_target)
@target_options
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many looks.")
@click.option("--once", is_flag=True, help="The same as -n 1.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True,
    metavar="SECONDS", help="Between two looks.",
)  # fmt: skip
@common
@pass_settings
def top(
    settings: Settings, target: str | None, *, count: int | None, once: bool, interval: float
) -> None:
    """Show all running guests as they change, or the processes of TARGET by CPU.

    `q` or Ctrl-C ends it. Percent of CPU are of one processor, pressure (PSI) is the share of
    time that tasks waited. Where the output is no terminal, or with -o or --columns, it prints
    one look (rates take an interval) or as many as -n says. How much CPU looking takes is shown;
    it is at most a tenth of a core.

    \b
    virt-introspect top
    virt-introspect top web01
    virt-introspect top --once -o json | jq 'max_by(.pressure_memory).domain'
    virt-introspect top web01 -n 10 --interval 1 -o csv
    """
    from virtintrospect.cli.output import Stream, choose
    from virtintrospect.cli.topviews import Guests, Processes, paced
    from virtintrospect.insight.tables import TOP, TOP_PROCESSES

    if once and count:
        raise UsageError("--once is -n 1: one of them")
    if settings.nested and target is None:
        raise UsageError("--nested needs a TARGET that runs the guest")
    table = TOP if target is None else TOP_PROCESSES
    choose(table, settings.columns, settings.output)
    for_people = settings.output == "table" and settings.columns is None
    live = sys.stdout.isatty() and for_people and not (once or count)
    with ExitStack() as stack:
        view: Guests | Processes
        if target is None:
            view = Guests(settings, stack)
        else:
            view = Processes(target, stack.enter_context(settings.open(target, table)))
        looks = paced(view.look, interval)
        if live:
            from virtintrospect.cli.toplive import show

            show(view, looks)
            return
        # The first look only gives the counters that rates are made of.
        with suppress(KeyboardInterrupt):
            next(looks)
            chosen = _until_interrupted(itertools.islice(looks, 1 if once else count or 1))
            if settings.output in (
                "csv",
                "jsonl",
            ):  # who reads them need not wait for the last look
                stream = Stream(table, output=settings.output, columns=settings.columns)
                for look in chosen:
                    stream.write(look.rows)
            else:
                settings.show(table, (row for look in chosen for row in look.rows))


def _until_interrupted(looks: Iterator[Look]) -> Iterator[Look]:
    """Those that were taken before Ctrl-C are shown, also where they are shown together."""
    with suppress(KeyboardInterrupt):
        yield from looks
