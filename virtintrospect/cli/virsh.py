"""Commands that answer as virsh's own do, without what those need in the guest."""

from __future__ import annotations

from typing import Any

import click

from virtintrospect.cli.options import (
    Settings,
    common,
    pass_settings,
    snapshot_option,
    target_argument,
)

_KINDS = {
    "user": "Users who are logged in.",
    "os": "The operating system.",
    "timezone": "The time zone.",
    "hostname": "The host's name.",
    "filesystem": "Mounted file systems.",
    "disk": "Disks and partitions.",
    "interface": "Network interfaces.",
    "load": "Load averages.",
}


@click.command("guestinfo")
@target_argument
@snapshot_option
@common
@pass_settings
def guestinfo(settings: Settings, /, target: str, **chosen: bool) -> None:
    """Tell what `virsh guestinfo` tells of TARGET, without a guest agent.

    Keys, values and options are virsh's. What the guest does not have in memory is left out.

    \b
    virt-introspect guestinfo web01
    virt-introspect guestinfo web01 --os --filesystem
    virt-introspect -o json guestinfo web01 | jq -r '."os.pretty-name"'
    """
    from virtintrospect.domainxml import disk_aliases
    from virtintrospect.insight.tables import guestinfo_table

    kinds = [kind for kind, wanted in chosen.items() if wanted]
    with settings.session(target) as session:
        aliases = disk_aliases(session.domain.xml) if session.domain else {}
        values = settings.read(session, lambda guest: guest.guestinfo(kinds, aliases))
        settings.show(guestinfo_table(values), [values], single=True)
        settings.report(session.guest)


for _kind, _text in reversed(_KINDS.items()):
    click.option(f"--{_kind}", is_flag=True, help=_text)(guestinfo)


@click.command("dommemstat")
@target_argument
@snapshot_option
@common
@pass_settings
def dommemstat(settings: Settings, target: str) -> None:
    """Tell what `virsh dommemstat` tells of TARGET, without a balloon driver.

    Names and units are virsh's: KiB, and numbers of events. `actual` and `rss` are the host's
    figures; a memory image has none.

    \b
    virt-introspect dommemstat web01
    virt-introspect -o json dommemstat web01 | jq .usable
    """
    import time

    from virtintrospect.domainxml import current_memory
    from virtintrospect.driver import SupportsResidentSize
    from virtintrospect.insight.tables import DOMMEMSTAT

    with settings.open(target, DOMMEMSTAT) as session:
        stats = settings.read(session, lambda guest: guest.balloon_stats())
        names = [column.name for column in DOMMEMSTAT.columns]
        values: dict[str, Any] = {name: getattr(stats, name, None) for name in names}
        if session.domain is not None:
            values["actual"] = current_memory(session.domain.xml)
        if isinstance(session.target, SupportsResidentSize):
            values["rss"] = session.target.resident_size() >> 10
        if session.target.live:
            values["last_update"] = int(time.time())
        settings.show(DOMMEMSTAT, [values], single=True)
        settings.report(session.guest)
