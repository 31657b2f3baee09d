"""Options and arguments that the commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from virtintrospect.cli.escape import printable
from virtintrospect.cli.output import FORMATS
from virtintrospect.errors import UsageError, VirtIntrospectError

if TYPE_CHECKING:
    from virtintrospect.cli.kept import Kept
    from virtintrospect.client import Answer, Client
    from virtintrospect.domain import Domain
    from virtintrospect.driver import Access
    from virtintrospect.guests.base import Guest
    from virtintrospect.insight.columns import Record, Table
    from virtintrospect.session import Session

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


class Settings:
    """What the options in front of the command say; the command's own go before them."""

    def __init__(self) -> None:
        self.uri: str | None = None
        self.output = "table"
        self.columns: str | None = None
        self.verbose = False
        self.no_daemon = False
        self.snapshot = False
        self.transport: str | None = None
        self.nested = ""
        self.allow_taint = self.allow_write = self.in_place = False
        #: One of many commands of a process (cli/batch.py): what stays open between them.
        self.kept: Kept | None = None
        #: Why the command failed, once it has.
        self.error: VirtIntrospectError | None = None

    def not_in_batch(self, what: str) -> None:
        """Refuse what has no end, or writes what is not text, among other commands.

        :raises UsageError: this is one of many commands.
        """
        if self.kept is not None:
            raise UsageError(f"{what} is not possible in a batch")

    @property
    def access(self) -> Access:
        """How TARGET is to be opened, and what the user allows."""
        from virtintrospect.driver import Access

        return Access(
            transport=self.transport,
            write=self.allow_write,
            taint=self.allow_taint,
            in_place=self.in_place,
            nested=self.nested,
        )

    def open(self, target: str, table: Table) -> AbstractContextManager[Session]:
        """Open a session on a TARGET, after checking that ``table`` has the columns asked for."""
        from virtintrospect.cli.output import choose

        choose(table, self.columns, self.output)
        return self.session(target)

    def session(self, target: str) -> AbstractContextManager[Session]:
        """Open a session on a TARGET; in a batch maybe one of a command before."""
        from virtintrospect.session import open_session

        if self.kept is not None and not self.snapshot:
            return self.kept.session(target, self.uri, self.access)
        return open_session(target, self.uri, access=self.access)

    def session_of(self, domain: Domain) -> AbstractContextManager[Session]:
        """The same, read-only, of a domain that is already known."""
        from virtintrospect.session import open_domain

        return open_domain(domain) if self.kept is None else self.kept.of(domain)

    def chosen(self, table: Table) -> list[str]:
        """Names of the columns that will be shown."""
        from virtintrospect.cli.output import choose

        return [column.name for column in choose(table, self.columns, self.output)]

    def client(self) -> Client | None:
        """A connection to the daemon; ``None`` where there is none, or none is wanted."""
        from virtintrospect.client import Client, UnavailableError

        if self.no_daemon:
            return None
        try:
            return Client()
        except UnavailableError as error:
            _log("no daemon: %s", error)
            return None

    def fetch(self, target: str, table: Table, arguments: Any) -> Answer:
        """The rows of a table.

        From the daemon's session on TARGET where there is one that is ready, and the user did
        not say how to open it; else from one that is opened for them.

        :param arguments: of the table's method.
        """
        from virtintrospect.cli.output import choose
        from virtintrospect.client import Answer
        from virtintrospect.insight.columns import record

        choose(table, self.columns, self.output)
        answer = self.ask_daemon(target, table, arguments)
        if answer is not None:
            return answer
        with self.open(target, table) as session:
            found = self.read(session, lambda guest: getattr(guest, table.source)(**arguments))
            rows = [record(table, item) for item in ([found] if table.single else found)]
            return Answer(rows, [(p.what, p.address) for p in session.take_problems()])

    def read(self, session: Session, function: Callable[[Guest], _T]) -> _T:
        """Read tables of a guest; with ``--snapshot`` while it stands still."""
        if not self.snapshot:
            return function(session.guest)
        from virtintrospect.consistent import PATIENCE, at_one_moment

        view = at_one_moment(session, function)
        click.echo(f"the guest stood still for {view.pause_ms:.1f} ms", err=True)
        if not view.whole:
            text = f"it was let go on after {PATIENCE:g} s: not all of this is of one moment"
            click.echo(f"warning: {text}", err=True)
        return view.found

    def ask_daemon(self, target: str, table: Table, arguments: Any) -> Answer | None:
        """The rows of a table, from the daemon; ``None`` where it is not to be asked, or has none.

        :param arguments: of the table's method.
        """
        from virtintrospect.client import UnavailableError
        from virtintrospect.driver import READ_ONLY, driver_for_url

        if (
            self.snapshot
            or self.access != READ_ONLY
            or "/" in target
            or driver_for_url(target) is not None
        ):
            return None
        if (client := self.client()) is None:
            return None
        with client:
            try:
                return client.table(table, target, self.uri, arguments)
            except UnavailableError as error:
                _log("not from the daemon: %s", error)
                return None

    def show(self, table: Table, records: Iterable[Record], *, single: bool = False) -> None:
        """Print records in the format asked for."""
        from virtintrospect.cli.output import show

        show(table, records, output=self.output, columns=self.columns, single=single)

    def report(self, guest: Guest) -> None:
        """Say on standard error what could not be made sense of."""
        self.warn([(problem.what, problem.address) for problem in guest.take_problems()])

    def warn(self, problems: Sequence[tuple[str, int]]) -> None:
        """The same, of what is at which address."""
        if not problems:
            return
        shown = problems if self.verbose else problems[:1]
        for what, address in shown:
            where = f" (at {address:#x})" if address else ""
            click.echo(f"warning: {printable(what)}{where}", err=True)
        if len(problems) > len(shown):
            click.echo(
                f"warning: {len(problems) - len(shown)} more like this; -v shows them", err=True
            )


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def _log(message: str, *values: object) -> None:
    import logging

    logging.getLogger(__name__).debug(message, *values)


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
    from shlex import quote

    from click.shell_completion import CompletionItem

    if "/" in incomplete or incomplete.startswith("."):
        return [CompletionItem(incomplete, type="file")]
    from virtintrospect.host import connect

    settings = context.find_object(Settings)
    try:
        with connect(settings.uri if settings else None) as host:
            names = [domain.name for domain in host.domains(active_only=True)]
    except VirtIntrospectError:
        return []
    # A shell takes what is offered for what was typed: only names that are nothing but names.
    fit = (name for name in names if name.startswith(incomplete) and quote(name) == name)
    return [CompletionItem(name) for name in fit]


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
            "--no-daemon", is_flag=True, expose_value=False, callback=_set("no_daemon"),
            help="Do not ask virt-introspectd, even where it has a session that is ready.",
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
    """The TARGET, a domain or a memory image, and the options that say how it is opened."""
    return click.argument("target", shell_complete=complete_target)(target_options(function))


def target_options(function: _F) -> _F:
    """The options that say how a TARGET is opened."""
    options = [
        click.option(
            "--transport", metavar="NAME", expose_value=False, callback=_set("transport"),
            help="How to reach its memory, instead of the best way that works; docs/transports.md "
            "lists them, and so does a wrong NAME.",
        ),
        click.option(
            "--nested", metavar="GUEST", expose_value=False, callback=_set("nested"),
            help="Not TARGET, but a guest that it runs itself, by KVM: its PID or name, as "
            "`virt-introspect nested TARGET` lists them.",
        ),
        click.option(
            "--allow-taint", is_flag=True, expose_value=False, callback=_set("allow_taint"),
            help="Allow what makes libvirt mark the domain as tainted.",
        ),
        click.option(
            "--allow-write", is_flag=True, expose_value=False, callback=_set("allow_write"),
            help="Allow changes of its memory and registers.",
        ),
        click.option(
            "--in-place", is_flag=True, expose_value=False, callback=_set("in_place"),
            help="With --allow-write: change the image file itself.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def snapshot_option(function: _F) -> _F:
    """The option for commands that read tables by :meth:`Settings.read`."""
    return click.option(
        "--snapshot", is_flag=True, expose_value=False, callback=_set("snapshot"),
        help="A view of one moment: the guest stands still while it is read. How long is told on "
        "standard error.",
    )(function)  # fmt: skip


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
