"""``list``: the domains of a connection, and what runs in them."""

from __future__ import annotations

from typing import Any

import click

from virtintrospect.cli.options import Settings, common, pass_settings


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="Domains that are shut off, too.")
@common
@pass_settings
def list_(settings: Settings, *, everything: bool) -> None:
    """List the domains of the host, and the kernel that each one runs.

    \b
    virt-introspect list
    virt-introspect -c qemu:///system list --all -o json
    """
    from virtintrospect.host import Host
    from virtintrospect.insight.tables import LIST

    with Host(settings.uri) as host:
        domains = list(host.domains(active_only=not everything))
    rows = [_row(domain, settings) for domain in domains]
    settings.show(LIST, rows)
    unknown = sum(1 for row in rows if "id" in row and "os" not in row)
    if unknown and not settings.verbose:
        click.echo(f"warning: {unknown} running without a kernel in sight; -v says why", err=True)


def _row(domain: Any, settings: Settings) -> dict[str, Any]:
    """A domain's row; what could not be found out about its guest is left out, and said."""
    from virtintrospect.cli.escape import printable
    from virtintrospect.errors import VirtIntrospectError
    from virtintrospect.session import open_domain

    row = {"name": domain.name, "uuid": domain.uuid, "state": domain.state}
    if not domain.active:
        return row
    row["id"] = domain.id
    try:
        with open_domain(domain) as session:
            info = session.guest.info()
    except VirtIntrospectError as error:
        if settings.verbose:
            click.echo(f"warning: {domain.name}: {printable(error.message)}", err=True)
        return row
    return row | {"os": info.os, "kernel": info.release}
