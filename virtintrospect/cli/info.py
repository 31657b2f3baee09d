"""``info``: the guest's kernel; with ``--target`` the way that leads to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from virtintrospect.cli.options import (
    Settings,
    common,
    pass_settings,
    snapshot_option,
    target_argument,
)

if TYPE_CHECKING:
    from virtintrospect.driver import Target


@click.command("info")
@click.option(
    "--target", "of_target", is_flag=True,
    help="Show instead what can be done with TARGET itself, whatever runs in it.",
)  # fmt: skip
@target_argument
@snapshot_option
@common
@pass_settings
def info(settings: Settings, target: str, *, of_target: bool) -> None:
    """Show which kernel TARGET runs, and since when.

    With --target: by which transport its memory is read, whether it is live, what else it can
    do, how much memory there is and where.

    \b
    virt-introspect info web01
    virt-introspect -o json info ./web01.core
    virt-introspect info --target web01
    virt-introspect info --target web01 --transport kvm-process -o json
    """
    from virtintrospect.insight.tables import INFO, TARGET

    if of_target:
        with settings.open(target, TARGET) as session:
            settings.show(TARGET, [_abilities(session.target)], single=True)
        return
    answer = settings.fetch(target, INFO, {})
    settings.show(INFO, answer.rows, single=True)
    settings.warn(answer.problems)


def _abilities(target: Target) -> dict[str, Any]:
    from virtintrospect.driver import Capability

    able = target.capabilities()
    memory = target.memory
    return {
        "transport": target.transport,
        "live": target.live,
        **{what.value.replace("-", "_"): what in able for what in Capability},
        "size": memory.size,
        "regions": [f"{region.start:#x}-{region.end:#x}" for region in memory.regions],
    }
