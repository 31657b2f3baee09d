"""``hung`` and ``crash``: rows for programs, a report for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from virtintrospect.cli.options import Settings, common, pass_settings, target_argument
from virtintrospect.cli.span import Span
from virtintrospect.insight.columns import record
from virtintrospect.insight.tables import CRASH, HUNG, STACK

if TYPE_CHECKING:
    from virtintrospect.session import Session


@click.command("hung")
@target_argument
@click.option(
    "--for", "seconds", type=Span(zero=True), default="120s", show_default=True, metavar="TIME",
    help="Only tasks that have waited, and CPUs that have run one task, for so long (10, 5m).",
)  # fmt: skip
@common
@pass_settings
def hung(settings: Settings, target: str, *, seconds: float) -> None:
    """Show why TARGET hangs: tasks that wait, CPUs that do not come on, what the kernel said.

    \b
    virt-introspect hung web01
    virt-introspect hung web01 --for 0
    virt-introspect hung web01 -o json | jq '.[] | select(.kind == "task") | .stack'
    """
    from virtintrospect.cli.report import hung_report
    from virtintrospect.model import Stall

    with settings.open(target, HUNG) as session:
        guest = session.guest
        found = guest.hung(seconds)
        state = _stopped(session)
        if state:
            found.insert(0, Stall(kind="guest", state=state, text=f"it is {state}".encode()))
        if settings.output == "table" and settings.columns is None:
            hung_report(guest, found, seconds)
        else:
            settings.show(HUNG, [record(HUNG, item) for item in found])
        settings.report(guest)


@click.command("crash")
@target_argument
@click.option("--stacks", is_flag=True, help="The stacks of all CPUs instead, frame by frame.")
@common
@pass_settings
def crash(settings: Settings, target: str, *, stacks: bool) -> None:
    """Show whether the kernel of TARGET has crashed, why, and what it was doing.

    \b
    virt-introspect crash web01
    virt-introspect crash ./web01.core
    virt-introspect crash ./web01.core --stacks
    virt-introspect crash web01 -o json | jq -r .message
    """
    from virtintrospect.cli.report import crash_report

    with settings.open(target, STACK if stacks else CRASH) as session:
        guest = session.guest
        if stacks:
            settings.show(STACK, [record(STACK, frame) for frame in guest.cpu_stacks()])
        elif settings.output == "table" and settings.columns is None:
            crash_report(guest.crash(), _stopped(session))
        else:
            settings.show(CRASH, [record(CRASH, guest.crash())], single=True)
        settings.report(guest)


def _stopped(session: Session) -> str:
    """What libvirt calls a domain that does not run: paused, crashed, …; empty for others."""
    state = session.domain.state if session.domain else "running"
    return "" if state == "running" else state
