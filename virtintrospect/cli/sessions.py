"""``sessions``, ``attach`` and ``detach``: what virt-introspectd has on the domains."""

from __future__ import annotations

from typing import Any

import click

from virtintrospect.cli.options import Settings, common, pass_settings


@click.command("sessions")
@common
@pass_settings
def sessions(settings: Settings) -> None:
    """Show the sessions of virt-introspectd: state, kernel, and what they have cost.

    A session is seen (libvirt knows the domain), waiting (for a kernel), ready, lost (its memory
    cannot be reached), gone (shut off or migrated away) or detached (left alone).

    \b
    virt-introspect sessions
    virt-introspect sessions -o json | jq '.[] | select(.state != "ready")'
    """
    _show(settings, "sessions")


@click.command("attach")
@click.argument("domain")
@common
@pass_settings
def attach(settings: Settings, domain: str) -> None:
    """Let virt-introspectd look into DOMAIN again, after `detach` or a lost session.

    \b
    virt-introspect attach web01
    """
    _show(settings, "attach", domain=domain)


@click.command("detach")
@click.argument("domain")
@click.option("--forever", is_flag=True, help="Also after a restart of domain, daemon or host.")
@common
@pass_settings
def detach(settings: Settings, domain: str, *, forever: bool) -> None:
    """Let virt-introspectd leave DOMAIN alone, until `attach` or its next start.

    \b
    virt-introspect detach web01
    virt-introspect detach web01 --forever
    """
    _show(settings, "detach", domain=domain, forever=forever)


def _show(settings: Settings, method: str, **params: Any) -> None:
    """Ask the daemon, and show the sessions that it answers with."""
    from virtintrospect.cli.output import choose
    from virtintrospect.client import Client, decode
    from virtintrospect.insight.tables import SESSIONS

    choose(SESSIONS, settings.columns, settings.output)
    with Client() as client:
        answer = client.ask(method, uri=settings.uri, **params)
    settings.show(SESSIONS, [decode(SESSIONS, row) for row in answer["rows"]])
    if answer.get("libvirt") is False:
        click.echo("warning: the daemon waits for libvirt", err=True)
