"""``symbols import``, ``imported`` and ``forget``: what kernels need that explain nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from virtintrospect.cli.options import Settings, common, pass_settings
from virtintrospect.errors import NotFoundError, UsageError, VirtIntrospectError

if TYPE_CHECKING:
    from virtintrospect.symbols.imported import Imported
    from virtintrospect.symbols.imports import Imports


class TargetOrCommand(click.Group):
    """A group whose first word is a TARGET of its default command, unless it is a subcommand.

    :param default: the command that takes the TARGET.
    """

    def __init__(self, *args: Any, default: click.Command, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.default = default

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand that the first word calls, or the default with all words."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "", self.default, args

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Both ways to call it."""
        pieces = self.default.collect_usage_pieces(ctx)
        formatter.write_usage(ctx.command_path, " ".join(pieces))
        formatter.write_usage(ctx.command_path, "[OPTIONS] COMMAND [ARGS]...")

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Subcommands and targets."""
        targets = self.default.params[0].shell_complete(ctx, incomplete)
        return [*super().shell_complete(ctx, incomplete), *targets]


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=str))
@click.option(
    "--build-id", metavar="HEX", help="The kernel's build id, where FILE does not say it."
)
@click.option(
    "--release", metavar="NAME", help="Its release (uname -r), for a System.map of another name."
)
@common
@pass_settings
def import_(settings: Settings, file: str, build_id: str | None, release: str | None) -> None:
    """Keep the types and symbols that FILE has of a kernel which lacks its own.

    FILE is the kernel's vmlinux with debug information (from the distribution's debug package),
    a profile of volatility3 (ISF), a System.map, or raw BTF; it may be compressed. What it says
    serves every guest with that kernel from then on, and is kept until it is forgotten.

    \b
    virt-introspect symbols import /usr/lib/debug/boot/vmlinux-6.1.0-50-686
    virt-introspect symbols import debian-6.1.json.xz
    virt-introspect symbols import System.map-6.1.0-50-686
    virt-introspect symbols import kernel.btf --build-id e53bebc4fd9b0992c212d7b0f7f84237a970890d
    """
    from pathlib import Path

    from virtintrospect.symbols.bring import bring

    path = Path(file)
    with _progress(path.name) as progress:
        brought = bring(
            path, build_id=_build_id(build_id), release=release or "", progress=progress
        )
    _show(settings, _writing(lambda imports: imports.add(brought, path.name)))


@click.command("imported")
@common
@pass_settings
def imported(settings: Settings) -> None:
    """Show what was imported.

    \b
    virt-introspect symbols imported
    virt-introspect -o json symbols imported --columns kernel,holds
    """
    _show(settings, _imports().all())


@click.command("forget")
@click.argument("kernel")
@common
@pass_settings
def forget(settings: Settings, kernel: str) -> None:
    """Forget what was imported for KERNEL: its build id, its release, or as `imported` names it.

    \b
    virt-introspect symbols forget 6.1.0-50-686
    """
    gone = _writing(lambda imports: imports.forget(kernel))
    if not gone:
        raise NotFoundError(
            f"nothing was imported for a kernel {kernel!r}",
            hint="`virt-introspect symbols imported` shows what was",
        )
    _show(settings, gone)


def _imports() -> Imports:
    from virtintrospect.symbols.imports import Imports
    from virtintrospect.symbols.store import default_directory

    return Imports(default_directory())


def _writing(work: Callable[[Imports], list[Imported]]) -> list[Imported]:
    imports = _imports()
    try:
        return work(imports)
    except OSError as error:
        raise VirtIntrospectError(
            f"cannot write the cache {imports.directory}: {error.strerror or error}",
            hint="VIRTINTROSPECT_CACHE names another folder; guests' owners must read it, too",
        ) from error


def _show(settings: Settings, rows: Iterable[Imported]) -> None:
    from virtintrospect.insight.tables import IMPORTED

    settings.show(
        IMPORTED,
        [
            {
                "kernel": row.kernel, "release": row.release, "holds": row.holds[1:],
                "count": row.count, "pointer_size": row.pointer_size, "format": row.format,
                "source": row.source, "imported": row.imported,
                "banner": row.banner or None,
            }
            for row in rows
        ],
    )  # fmt: skip


def _build_id(text: str | None) -> bytes:
    from virtintrospect.symbols.imported import MAX_BUILD_ID

    try:
        found = bytes.fromhex(text or "")
    except ValueError:
        found = b""
    if (text is not None and not found) or len(found) > MAX_BUILD_ID:
        raise UsageError(
            f"{text!r} is no build id", hint="it is written in hexadecimal: readelf -n vmlinux"
        )
    return found


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal: reading a vmlinux takes a while."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    from virtintrospect.cli.escape import printable

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
