"""Options and arguments that the commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from virtintrospect.cli.escape import printable
from virtintrospect.cli.output import FORMATS
from virtintrospect.errors import UsageError, VirtIntrospectError

if TYPE_CHECKING:
    from virtintrospect.guests.base import Guest
    from virtintrospect.insight.columns import Record, Table
    from virtintrospect.session import Session

_F = TypeVar("_F", bound=Callable[..., Any])


class Settings:
    """What the options in front of the command say; the command's own go before them."""

    def __init__(self) -> None:
        self.uri: str | None = None
        self.output = "table"
        self.columns: str | None = None
        self.verbose = False

    def open(self, target: str, table: Table) -> Session:
        """Open a session on a TARGET, after checking that ``table`` has the columns asked for."""
        from virtintrospect.cli.output import choose
        from virtintrospect.session import open_session

        choose(table, self.columns, self.output)
        return open_session(target, self.uri)

    def chosen(self, table: Table) -> list[str]:
        """Names of the columns that will be shown."""
        from virtintrospect.cli.output import choose

        return [column.name for column in choose(table, self.columns, self.output)]

    def show(self, table: Table, records: Iterable[Record], *, single: bool = False) -> None:
        """Print records in the format asked for."""
        from virtintrospect.cli.output import show

        show(table, records, output=self.output, columns=self.columns, single=single)

    def report(self, guest: Guest) -> None:
        """Say on standard error what could not be made sense of."""
        problems = guest.take_problems()
        if not problems:
            return
        shown = problems if self.verbose else problems[:1]
        for problem in shown:
            click.echo(f"warning: {printable(problem.what)} (at {problem.address:#x})", err=True)
        if len(problems) > len(shown):
            click.echo(
                f"warning: {len(problems) - len(shown)} more like this; -v shows them", err=True
            )


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(context.ensure_object(Settings), name, value)

    return callback


def _debug(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        log_to_stderr(debug=True)


def log_to_stderr(*, debug: bool) -> None:
    """Send the library's warnings, or all it says, to standard error as lines of ours."""
    import logging

    class Printable(logging.Formatter):
        def format(self, entry: logging.LogRecord) -> str:
            head = entry.name if debug else f"warning: {entry.name.rpartition('.')[2]}"
            return f"{head}: {printable(entry.getMessage())}"

    handler = logging.StreamHandler()
    handler.setFormatter(Printable())
    logger = logging.getLogger("virtintrospect")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)


def complete_target(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Running domains by name, and files as soon as there is a slash."""
    from click.shell_completion import CompletionItem

    if "/" in incomplete or incomplete.startswith("."):
        return [CompletionItem(incomplete, type="file")]
    from virtintrospect.host import Host

    settings = context.find_object(Settings)
    try:
        with Host(settings.uri if settings else None) as host:
            names = [domain.name for domain in host.domains(active_only=True)]
    except VirtIntrospectError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def common(function: _F) -> _F:
    """Options that are understood in front of the command and behind it."""
    options = [
        click.option(
            "-c", "--connect", metavar="URI", expose_value=False, callback=_set("uri"),
            help="libvirt connection; otherwise as virsh: VIRSH_DEFAULT_CONNECT_URI, "
            "LIBVIRT_DEFAULT_URI, libvirt's own default.",
        ),
        click.option(
            "-o", "--output", type=click.Choice(FORMATS), expose_value=False,
            callback=_set("output"), help="Format of the output; table is for people.",
        ),
        click.option(
            "--columns", metavar="NAMES", expose_value=False, callback=_set("columns"),
            help="Comma-separated columns to show, or 'all'.",
        ),
        click.option(
            "-v", "--verbose", is_flag=True, expose_value=False, callback=_set("verbose"),
            help="Say more: causes of an error, every row that was left out.",
        ),
        click.option(
            "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_debug,
            help="Log each step, and show tracebacks.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def target_argument(function: _F) -> _F:
    """The TARGET: a domain or a memory image."""
    return click.argument("target", shell_complete=complete_target)(function)


def number(text: str, what: str) -> int:
    """A number as people write it: decimal, or hexadecimal with 0x.

    :raises UsageError: it is none, or it is below zero or above 64 bits.
    """
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise UsageError(f"{text!r} is no {what}", hint="write it as 0x… or decimal")
    return value
