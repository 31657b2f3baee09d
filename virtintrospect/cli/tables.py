"""The commands that show tables of a guest: most follow from the table's declaration alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from virtintrospect.cli.options import (
    Settings,
    common,
    pass_settings,
    snapshot_option,
    target_argument,
)
from virtintrospect.errors import UsageError
from virtintrospect.insight.columns import Table
from virtintrospect.insight.tables import ALL, COMMANDS, INFO, PS, PS_DETAILS

#: Characters that `virt-introspect --help` has room for behind a command, on 80 columns.
_SUMMARY = 60


def table_commands() -> Iterator[click.Command]:
    """A command for each table of :data:`~virtintrospect.insight.tables.COMMANDS`.

    But for those that have more to them, and therefore a file of their own.
    """
    for table in COMMANDS:
        if table is not INFO:
            yield _command(table)


def summary(command: click.Command) -> str:
    """What fits behind a command's name: the beginning of its help."""
    line = " ".join((command.help or "").partition("\n\n")[0].split())
    line = line.partition(": ")[0].rstrip(".")
    return (line if len(line) <= _SUMMARY else line.partition(", ")[0]) + "."


def columns_of(command: click.Command) -> str:
    """Names of the columns of a command's table, for the end of its help."""
    table = ALL.get(command.name or "")
    if table is None:
        return ""
    brief = ", ".join(column.name for column in table.columns if column.brief)
    more = ", ".join(column.name for column in table.columns if not column.brief)
    text = f"Columns: {brief}."
    return f"{text} Shown in a table only if asked for: {more}." if more else text


def _command(table: Table) -> click.Command:
    def show(
        settings: Settings,
        target: str,
        *,
        follow: bool = False,
        interval: float = 0,
        **arguments: Any,
    ) -> None:
        if follow:
            if settings.snapshot:
                raise UsageError("--follow and --snapshot exclude each other")
            from virtintrospect.cli.follow import follow as go_on

            go_on(settings, target, table, interval)
            return
        answer = settings.fetch(target, table, arguments)
        settings.show(table, answer.rows, single=table.single)
        settings.warn(answer.problems)

    examples = "\n".join(f"virt-introspect {example}" for example in table.examples)
    pattern = f"PATTERN: {table.pattern}\n\n" if table.pattern else ""
    show.__doc__ = f"{table.help}\n\n{pattern}\b\n{examples}\n"
    function: Any = pass_settings(show)
    function = snapshot_option(common(function))
    for name, text in reversed(table.switches):
        function = click.option(f"--{name}", is_flag=True, help=text)(function)
    for name, text in reversed(table.texts):
        function = click.option(f"--{name}", metavar=name.upper(), help=text)(function)
    if table.follow:
        function = _follow_options(function)
    if table.by_pid:
        help_text = "Only this process."
        function = click.option("--pid", type=int, metavar="PID", help=help_text)(function)
    if table.pattern:
        function = click.argument("pattern", required=False)(function)
    if table.argument:
        function = click.argument(table.argument, type=int)(function)
    command: click.Command = click.command(table.name)(target_argument(function))
    return command


def _follow_options(function: Any) -> Any:
    function = click.option(
        "--interval", metavar="SECONDS", type=click.FloatRange(0.01, 3600), default=0.5,
        help="With --follow: how long to wait between two looks; 0.5 by default.",
    )(function)  # fmt: skip
    help_text = "Go on with what comes, through reboots, until Ctrl-C or the end of the guest."
    return click.option("-f", "--follow", is_flag=True, help=help_text)(function)


@click.command("ps")
@target_argument
@click.option("--threads", is_flag=True, help="One row for each thread.")
@click.option("--tree", is_flag=True, help="Children below their parents, names indented.")
@snapshot_option
@common
@pass_settings
def ps(settings: Settings, target: str, *, threads: bool, tree: bool) -> None:
    """List the processes of TARGET.

    \b
    virt-introspect ps web01
    virt-introspect ps web01 --tree
    virt-introspect ps web01 --columns pid,name,cgroup_path
    virt-introspect ps web01 --threads --snapshot
    virt-introspect ps web01 -o json | jq '.[] | select(.euid == 0) | .path'
    """
    from virtintrospect.insight.tree import as_tree

    details = not PS_DETAILS.isdisjoint(settings.chosen(PS))
    answer = settings.fetch(target, PS, {"threads": threads, "details": details})
    rows = answer.rows
    if tree:
        rows = as_tree(rows, indent=settings.output == "table")
    settings.show(PS, rows)
    settings.warn(answer.problems)
