"""``--follow``: records as they come, until Ctrl-C or the end of the guest."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from virtintrospect.errors import UsageError
from virtintrospect.insight.columns import Table, record

if TYPE_CHECKING:
    from virtintrospect.cli.options import Settings


def follow(settings: Settings, target: str, table: Table, interval: float) -> None:
    """Print what there is, then what comes.

    :param interval: seconds between two looks.
    :raises UsageError: neither this format nor this target can be followed.
    """
    from virtintrospect.cli.output import Stream

    settings.not_in_batch("--follow")
    if settings.output == "json":
        raise UsageError("a JSON array has an end, --follow has none", hint="take -o jsonl")
    with settings.open(target, table) as session:
        if not session.target.live:
            raise UsageError(f"{target} is an image: nothing comes to it", hint="omit --follow")
        stream = Stream(table, output=settings.output, columns=settings.columns)
        with contextlib.suppress(KeyboardInterrupt):
            for batch in getattr(session, table.follow)(interval):
                if batch.rebooted:
                    click.echo("the guest has rebooted; from here it is the new kernel", err=True)
                if batch.lost:
                    click.echo(
                        f"warning: {batch.lost} records were overwritten before they were read",
                        err=True,
                    )
                stream.write(record(table, item) for item in batch.records)
                settings.report(session.guest)
