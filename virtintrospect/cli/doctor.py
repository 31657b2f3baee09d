"""``doctor``: what is wrong with this host, and what to do about it."""

from __future__ import annotations

import click

from virtintrospect.cli.escape import printable
from virtintrospect.cli.options import Settings, common, complete_target, pass_settings
from virtintrospect.errors import UsageError

#: Done, with findings.
_FINDINGS = 6


@click.command("doctor")
@click.argument("domain", required=False, shell_complete=complete_target)
@click.option("--fix-memory-backing", "fix", metavar="DOMAIN", shell_complete=complete_target,
              help="Change a domain's definition so that its RAM is shared.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask before a change.")
@common
@pass_settings
@click.pass_context
def doctor(
    context: click.Context, settings: Settings, /, *, domain: str | None, fix: str | None, yes: bool
) -> None:
    """Check this host, and how the memory of its domains can be reached.

    Looks at libvirt, hooks, permissions, AppArmor, SELinux, and the memory of DOMAIN, or of all
    domains. Each finding says what to do. Exit code 6 when there is a problem.

    --fix-memory-backing shows the change to the persistent definition, asks, and makes it. It
    takes effect when the domain is next started; a running guest is not touched.

    \b
    virt-introspect doctor
    virt-introspect doctor web01
    virt-introspect doctor --fix-memory-backing web01
    """
    if fix is not None:
        if domain is not None:
            raise UsageError("--fix-memory-backing names its domain itself")
        _fix(settings, fix, yes=yes)
        return
    from virtintrospect.insight.columns import record
    from virtintrospect.plugin.check import PROBLEM
    from virtintrospect.plugin.doctor import examine
    from virtintrospect.plugin.hooks import Hooks
    from virtintrospect.plugin.tables import DOCTOR

    found = list(examine(settings.uri, domain, Hooks()))
    settings.show(DOCTOR, [record(DOCTOR, item) for item in found])
    if any(item.status == PROBLEM for item in found):
        context.exit(_FINDINGS)


def _fix(settings: Settings, name: str, *, yes: bool) -> None:
    """Offer shared RAM."""
    from difflib import unified_diff

    from virtintrospect.host import Host
    from virtintrospect.plugin.backing import CannotShareError, is_shared, with_shared_ram

    with Host(settings.uri, writable=True) as host:
        domain = host.domain(name)
        old = host.persistent_xml(domain, secrets=True)
        if old is None:
            raise CannotShareError(
                f"domain {domain.name!r} is transient: it has no definition to change",
                hint="whoever creates it can give it shared memory in its XML",
            )
        if is_shared(old):
            click.echo(f"{printable(domain.name)} has shared RAM already" + _since(domain.active))
            return
        new = with_shared_ram(old)
        lines = unified_diff(old.splitlines(), new.splitlines(), "now", "then", lineterm="")
        for line in lines:
            click.echo(printable(line))
        if not yes and not click.confirm("Change the definition?", err=True):
            raise click.Abort
        host.define(new)
        after = host.persistent_xml(domain) or ""
        saved = not domain.active and host.has_saved_state(domain)
    if not is_shared(after):
        raise CannotShareError(f"libvirt did not take the change to {domain.name!r}")
    when = "when its saved state is discarded, at the start after that" if saved else (
        "at its next start: shut it down and start it (a reboot in the guest is not enough)"
        if domain.active else "at its next start")  # fmt: skip
    click.echo(f"{printable(domain.name)} will have shared RAM {when}")


def _since(active: bool) -> str:
    return ", if it was started since it was given that" if active else ""
