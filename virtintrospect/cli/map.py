"""``map``: who owns each page of a guest's memory."""

from __future__ import annotations

from pathlib import Path

import click

from virtintrospect.cli import picture
from virtintrospect.cli.options import Settings, common, pass_settings, target_argument
from virtintrospect.errors import UsageError
from virtintrospect.insight.columns import record
from virtintrospect.insight.tables import MAP, MAP_PROCESSES, MAP_RANGES


@click.command("map")
@target_argument
@click.option("--processes", is_flag=True, help="What each process maps, instead of the totals.")
@click.option("--ranges", is_flag=True, help="Every run of pages of one owner, by its address.")
@click.option(
    "--plot", metavar="FILE", type=click.Path(path_type=Path),
    help="Draw a picture, too: FILE.png or FILE.svg. Needs Pillow.",
)  # fmt: skip
@common
@pass_settings
def map_(
    settings: Settings, target: str, *, processes: bool, ranges: bool, plot: Path | None
) -> None:
    """Show what each page of TARGET's memory is used for: processes, caches, the kernel, nobody.

    `resident` is what the host holds of it. With --processes a page counts for each process
    that maps it; `alone` is what would go with the process.

    \b
    virt-introspect map web01
    virt-introspect map web01 --processes -o json | jq 'sort_by(-.alone)[:5]'
    virt-introspect map web01 --ranges -o csv
    virt-introspect map web01 --plot web01.png
    """
    from virtintrospect.insight import pagemap

    if processes and ranges:
        raise UsageError("--processes and --ranges exclude each other")
    picture.check(plot)
    table = MAP_PROCESSES if processes else MAP_RANGES if ranges else MAP
    with settings.open(target, table) as session:
        guest = session.guest
        owners = guest.page_owners()
        if processes:
            settings.show(table, [record(table, each) for each in owners.processes])
        elif ranges:
            settings.show(table, pagemap.ranges(owners))
        else:
            held = owners.within(session.memory.resident())
            settings.show(table, pagemap.totals(owners, held))
        if plot is not None:
            from virtintrospect.insight.pageplot import draw

            picture.write(plot, draw(owners, target, plot.suffix[1:]))
        settings.report(guest)
