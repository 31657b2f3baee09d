"""``hooks``: virtintrospect's hooks in libvirt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from virtintrospect.cli.options import Settings, common, pass_settings

if TYPE_CHECKING:
    from virtintrospect.insight.columns import Table
    from virtintrospect.plugin.hooks import Hooks

_F = TypeVar("_F", bound=Callable[..., Any])

#: Done, with findings.
_FINDINGS = 6


@click.group("hooks")
def hooks() -> None:
    """Install, remove or check the hooks in libvirt.

    They tell virt-introspectd of libvirt's domains as these come and go.
    """


def _host(function: _F) -> _F:
    """Options that say which host's hooks."""
    folder = click.Path(file_okay=False)
    options = [
        click.option("--root", type=folder, default="/", metavar="DIR",
                     help="Root folder of the host, for images and packages."),
        click.option("--xen", is_flag=True, help="Xen's hook too, though libvirt has no Xen here."),
        click.option("--run-dir", type=folder, default=None, hidden=True),
        click.option("--spool-dir", type=folder, default=None, hidden=True),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _open(root: str, *, xen: bool, run_dir: str | None, spool_dir: str | None) -> Hooks:
    from pathlib import Path

    from virtintrospect.plugin.hooks import Hooks
    from virtintrospect.plugin.source import Places

    found = Hooks(Path(root).absolute(), xen=xen)
    if run_dir or spool_dir:
        usual = found.places
        found.places = Places(Path(run_dir or usual.run), Path(spool_dir or usual.spool))
    return found


@hooks.command("install")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@_host
@common
@pass_settings
def install(settings: Settings, /, *, dry_run: bool, **host: Any) -> None:
    """Put the hooks into libvirt, or bring them up to date.

    Files of others in /etc/libvirt/hooks stay as they are. libvirt's daemon is asked to look for
    hooks (SIGHUP, as by systemctl reload) if it does not know of any; it is never restarted.

    \b
    virt-introspect hooks install --dry-run
    virt-introspect hooks install
    """
    from virtintrospect.plugin.install import Installer
    from virtintrospect.plugin.tables import ACTIONS

    _show(settings, ACTIONS, Installer(_open(**host), dry_run=dry_run).install())


@hooks.command("remove")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@_host
@common
@pass_settings
def remove(settings: Settings, /, *, dry_run: bool, **host: Any) -> None:
    """Take the hooks out of libvirt, with all that was made for them.

    Events that still wait for the daemon go, too. Folders stay where others use them.

    \b
    virt-introspect hooks remove
    """
    from virtintrospect.plugin.install import Installer
    from virtintrospect.plugin.tables import ACTIONS

    _show(settings, ACTIONS, Installer(_open(**host), dry_run=dry_run).remove())


@hooks.command("status")
@_host
@common
@pass_settings
@click.pass_context
def status(context: click.Context, settings: Settings, /, **host: Any) -> None:
    """Show how the hooks are, and whether libvirt knows of them.

    Exit code 6 when something is to be done.

    \b
    virt-introspect hooks status
    """
    from virtintrospect.plugin.tables import STATUS

    found = list(_open(**host).status())
    _show(settings, STATUS, found)
    if not all(item.good for item in found):
        context.exit(_FINDINGS)


def _show(settings: Settings, table: Table, items: Iterable[object]) -> None:
    from virtintrospect.insight.columns import record

    settings.show(table, [record(table, item) for item in items])
