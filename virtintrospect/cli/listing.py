"""``list``: the domains of a connection, and what runs in them."""

from __future__ import annotations

from typing import Any

import click

from virtintrospect.cli.escape import printable
from virtintrospect.cli.options import Settings, common, pass_settings


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="Domains that are shut off, too.")
@common
@pass_settings
def list_(settings: Settings, *, everything: bool) -> None:
    """List the domains of the host, and the kernel that each one runs.

    Where virt-introspectd runs, its session of each domain, too. With --columns that are neither
    os nor kernel no guest is looked into.

    \b
    virt-introspect list
    virt-introspect -c qemu:///system list --all -o json
    """
    from virtintrospect.insight.tables import LIST

    rows, unknown = _from_daemon(settings, everything=everything) or _from_libvirt(
        settings, everything=everything
    )
    settings.show(LIST, rows)
    if not unknown:
        return
    if settings.verbose:
        for name, why in unknown:
            click.echo(f"warning: {printable(name)}: {printable(why)}", err=True)
    else:
        count = len(unknown)
        click.echo(f"warning: {count} running without a kernel in sight; -v says why", err=True)


_Found = tuple[list[dict[str, Any]], list[tuple[str, str]]]


def _from_daemon(settings: Settings, *, everything: bool) -> _Found | None:
    """What the daemon knows; ``None`` where it cannot be asked.

    Where it has no session that is ready we look for ourselves, but for what is detached.
    """
    from virtintrospect.client import RemoteError

    client = settings.client()
    if client is None:
        return None
    with client:
        try:
            answer = client.ask("list", all=everything, uri=settings.uri)
        except RemoteError:
            return None
    rows, unknown = answer["rows"], []
    looks = _looks(settings)
    for index, row in enumerate(rows):
        if row.get("session") == "detached":
            unknown.append((row["name"], "it is detached"))
        elif "id" in row and "os" not in row and looks:
            rows[index] = _completed(settings, row, str(answer.get("uri")), unknown)
    return rows, unknown


def _completed(
    settings: Settings, row: dict[str, Any], uri: str, unknown: list[tuple[str, str]]
) -> dict[str, Any]:
    from virtintrospect.errors import VirtIntrospectError
    from virtintrospect.host import connect

    try:
        with connect(uri) as host:
            return _row(settings, host.domain(row["uuid"]), unknown) | row
    except VirtIntrospectError as error:
        unknown.append((row["name"], error.message))
        return row


def _from_libvirt(settings: Settings, *, everything: bool) -> _Found:
    """The domains as libvirt lists them, each looked into."""
    from virtintrospect.host import connect

    unknown: list[tuple[str, str]] = []
    with connect(settings.uri) as host:
        domains = list(host.domains(active_only=not everything))
    return [_row(settings, domain, unknown) for domain in domains], unknown


def _looks(settings: Settings) -> bool:
    """Whether guests must be looked into for the columns that are shown."""
    from virtintrospect.insight.tables import LIST

    return not {"os", "kernel"}.isdisjoint(settings.chosen(LIST))


def _row(settings: Settings, domain: Any, unknown: list[tuple[str, str]]) -> dict[str, Any]:
    """A domain's row; what could not be found out about its guest is left out, and noted."""
    from virtintrospect.errors import VirtIntrospectError

    row = {"name": domain.name, "uuid": domain.uuid, "state": domain.state}
    if not domain.active:
        return row
    row["id"] = domain.id
    if not _looks(settings):
        return row
    try:
        with settings.session_of(domain) as session:
            info = session.guest.info()
    except VirtIntrospectError as error:
        unknown.append((domain.name, error.message))
        return row
    return row | {"os": info.os, "kernel": info.release}
