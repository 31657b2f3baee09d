"""The commands that show one table of a guest."""

from __future__ import annotations

import click

from virtintrospect.cli.options import Settings, common, pass_settings, target_argument
from virtintrospect.insight.columns import record


@click.command("info")
@target_argument
@common
@pass_settings
def info(settings: Settings, target: str) -> None:
    """Show which kernel TARGET runs, and since when.

    \b
    virt-introspect info web01
    virt-introspect -o json info ./web01.core
    """
    from virtintrospect.insight.tables import INFO

    with settings.open(target, INFO) as session:
        guest = session.guest
        settings.show(INFO, [record(INFO, guest.info())], single=True)
        settings.report(guest)


@click.command("ps")
@target_argument
@click.option("--threads", is_flag=True, help="One row for each thread.")
@click.option("--tree", is_flag=True, help="Children below their parents, names indented.")
@common
@pass_settings
def ps(settings: Settings, target: str, *, threads: bool, tree: bool) -> None:
    """List the processes of TARGET.

    \b
    virt-introspect ps web01
    virt-introspect ps web01 --tree
    virt-introspect ps web01 --columns pid,name,cgroup_path
    virt-introspect ps web01 -o json | jq '.[] | select(.euid == 0) | .path'
    """
    from virtintrospect.insight.tables import PS
    from virtintrospect.insight.tree import as_tree

    with settings.open(target, PS) as session:
        guest = session.guest
        rows = [record(PS, process) for process in guest.processes(threads=threads)]
        if tree:
            rows = as_tree(rows, indent=settings.output == "table")
        settings.show(PS, rows)
        settings.report(guest)


@click.command("modules")
@target_argument
@common
@pass_settings
def modules(settings: Settings, target: str) -> None:
    """List the kernel modules of TARGET.

    \b
    virt-introspect modules web01
    virt-introspect modules web01 -o csv --columns name,taints
    """
    from virtintrospect.insight.tables import MODULES

    with settings.open(target, MODULES) as session:
        guest = session.guest
        settings.show(MODULES, [record(MODULES, module) for module in guest.modules()])
        settings.report(guest)


@click.command("dmesg")
@target_argument
@common
@pass_settings
def dmesg(settings: Settings, target: str) -> None:
    """Show the kernel log of TARGET.

    \b
    virt-introspect dmesg web01
    virt-introspect dmesg ./crashed.core | tail
    """
    from virtintrospect.insight.tables import DMESG

    with settings.open(target, DMESG) as session:
        guest = session.guest
        settings.show(DMESG, [record(DMESG, entry) for entry in guest.dmesg()])
        settings.report(guest)
