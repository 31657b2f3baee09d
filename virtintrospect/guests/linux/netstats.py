"""Packets and bytes of network interfaces (``dev_get_stats()`` of net/core/dev.c).

Where a driver counts is known only to its own function ``ndo_get_stats64``. Those that the
kernel itself offers are followed, and those of virtio_net and veth; another driver with one of its
own has counters that are unknown here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import FaultError, NotFoundError
from virtintrospect.guests.linux import veth, virtionet
from virtintrospect.guests.linux.modsyms import module_functions

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]


class Counters(NamedTuple):
    """Since the interface was made; ``None`` where that is not known."""

    rx_bytes: int | None = None
    tx_bytes: int | None = None
    rx_packets: int | None = None
    tx_packets: int | None = None
    rx_errors: int | None = None
    tx_errors: int | None = None
    rx_dropped: int | None = None
    tx_dropped: int | None = None


_NONE = Counters(*(0 for _ in Counters._fields))
#: Kinds of per-CPU counters: the structure, and its member for each of :class:`Counters` that it
#: has, the first ones.
_KINDS = {
    "tstats": ("pcpu_sw_netstats", ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")),
    "dstats": (
        "pcpu_dstats",
        ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "", "", "rx_drops", "tx_drops"),
    ),
    "loopback": ("pcpu_lstats", ("bytes", "bytes", "packets", "packets")),
    "transmit": ("pcpu_lstats", ("", "bytes", "", "packets")),
}
#: Those to which ``dev->stats`` is added.
_WITH_PLAIN = ("tstats", "dstats")
#: What the functions behind ``ndo_get_stats64`` add up.
_FUNCTIONS = {
    "loopback_get_stats64": "loopback",
    "dev_get_tstats64": "tstats",
    "ip_tunnel_get_stats64": "tstats",  # its name until 5.11
    "dummy_get_stats64": "transmit",
    "virtnet_stats": "virtio_net",
    "veth_get_stats64": "veth",
}
#: Those of modules, which the kernel's own symbols do not have.
_MODULES = {
    "dummy": "dummy_get_stats64",
    "virtio_net": "virtnet_stats",
    "veth": "veth_get_stats64",
}


#: What :func:`counters` needs of each ``net_device``. What the core itself drops it counts per
#: CPU since 5.18 (commit 625788b58445), in two plain counters before.
MEMBERS = {
    "core": "core_stats?",
    "core_rx": "rx_dropped.counter?",
    "core_tx": "tx_dropped.counter?",
    "get_stats64": "netdev_ops.ndo_get_stats64",
    "get_stats": "netdev_ops.ndo_get_stats",
    "stat_type": "pcpu_stat_type?",
    "per_cpu": "tstats",
    "queues": "num_rx_queues",
    **{f"plain_{name}": f"stats.{name}" for name in Counters._fields},
}


def counters(guest: LinuxGuest, rows: list[Row], budget: Budget) -> list[Counters]:
    """The counters of each device, in order."""
    names = module_functions(guest, _MODULES, budget)
    names |= {address: name for name in _FUNCTIONS if (address := guest.symbols.get(name))}
    kinds = [_kind(guest, row, names) for row in rows]
    found = [
        _plain(row) if kind == "plain" else Counters()
        for row, kind in zip(rows, kinds, strict=True)
    ]
    for kind, (structure, parts) in _KINDS.items():
        wanted = [i for i, row in enumerate(rows) if kinds[i] == kind and row["per_cpu"]]
        if not wanted or structure not in guest.types:
            continue
        sums = _summed(guest, structure, parts, [rows[i]["per_cpu"] for i in wanted], budget)
        for index, values in zip(wanted, sums, strict=True):
            base = _plain(rows[index]) if kind in _WITH_PLAIN else _NONE
            found[index] = _added(base, values)
    mine = [index for index, kind in enumerate(kinds) if kind == "virtio_net"]
    queues = virtionet.counters(guest, [rows[index]["device"] for index in mine])
    for index, counted in zip(mine, queues, strict=True):
        if counted is not None:
            dropped = rows[index]["plain_tx_dropped"]
            found[index] = _NONE._replace(**counted, tx_dropped=dropped)
    _pairs(guest, rows, kinds, found, budget)
    return _with_core(guest, rows, found, budget)


def _pairs(
    guest: LinuxGuest, rows: list[Row], kinds: list[str], found: list[Counters], budget: Budget
) -> None:
    """The ends of veth pairs; what each has sent is per CPU, in one structure or in another."""
    pairs = [index for index, kind in enumerate(kinds) if kind == "veth"]
    sent: dict[int, list[int] | None] = {}
    told = "netdev_stat_type" in guest.types
    switched = guest.types.enumerators("netdev_stat_type") if told else {}
    for structure, parts, kind in (
        ("pcpu_lstats", ("packets", "bytes"), "NETDEV_PCPU_STAT_LSTATS"),
        ("pcpu_sw_netstats", ("tx_packets", "tx_bytes"), "NETDEV_PCPU_STAT_TSTATS"),
    ):
        # Before 6.9 nothing said which; it was the first.
        own = switched.get(kind) if switched else (None if "lstats" in structure else 0)
        mine = [index for index in pairs if rows[index]["stat_type"] == own]
        sums = _summed(guest, structure, parts, [rows[index]["per_cpu"] for index in mine], budget)
        sent |= dict(zip(mine, sums, strict=True))
    counted = veth.counters(guest, [rows[i] for i in pairs], [sent.get(i) for i in pairs])
    for index, values in zip(pairs, counted, strict=True):
        if values is not None:
            found[index] = _NONE._replace(**values)


def _with_core(
    guest: LinuxGuest, rows: list[Row], found: list[Counters], budget: Budget
) -> list[Counters]:
    """Add what the core dropped before a driver saw it, or after."""
    parts = ("rx_dropped", "tx_dropped")
    wanted = [index for index, row in enumerate(rows) if row["core"]]
    pointers = [rows[index]["core"] for index in wanted]
    per_cpu: list[list[int] | None] = []
    if wanted and "net_device_core_stats" in guest.types:
        per_cpu = _summed(guest, "net_device_core_stats", parts, pointers, budget)
    dropped = dict(zip(wanted, per_cpu, strict=False))
    complete = []
    for index, (row, counted) in enumerate(zip(rows, found, strict=True)):
        core = dropped.get(index, [row["core_rx"] or 0, row["core_tx"] or 0])
        more = None if core is None else [0] * 6 + core
        complete.append(_added(counted, more))
    return complete


def _kind(guest: LinuxGuest, row: Row, names: dict[int, str]) -> str:
    """In which way a device counts; ``""`` where that is not known."""
    if row["get_stats64"]:
        return _FUNCTIONS.get(names.get(row["get_stats64"], ""), "")
    if row["get_stats64"] is None or row["get_stats"] is None or row["get_stats"]:
        return ""
    # Since 6.9 the core adds up per-CPU counters of drivers that leave it to it.
    if row["stat_type"] is not None:
        kinds = guest.types.enumerators("netdev_stat_type")
        for kind in _WITH_PLAIN:
            if row["stat_type"] == kinds.get(f"NETDEV_PCPU_STAT_{kind.upper()}"):
                return kind
    return "plain"


def _plain(row: Row) -> Counters:
    return Counters(*(row[f"plain_{name}"] for name in Counters._fields))


def _added(base: Counters, values: list[int] | None) -> Counters:
    if values is None or None in base:
        return Counters()
    padded = values + [0] * (len(base) - len(values))
    return Counters(*((x or 0) + y for x, y in zip(base, padded, strict=True)))


def _summed(
    guest: LinuxGuest,
    structure: str,
    parts: tuple[str, ...],
    pointers: list[int],
    budget: Budget,
) -> list[list[int] | None]:
    """The sum over all CPUs of what each per-CPU pointer leads to."""
    wanted = {part: f"{part}.v.a.a.counter|{part}.v|{part}" for part in parts if part}
    layout = guest.layout(structure, wanted, text=())
    sums: list[list[int] | None] = [[0] * len(parts) for _ in pointers]
    try:
        offsets = guest.cpu_offsets
    except (FaultError, NotFoundError) as error:
        guest.note(f"no per-CPU counters: {error}", 0)
        return [None] * len(pointers)
    for offset in offsets:
        if budget.late():
            return [None] * len(pointers)
        addresses = [(pointer + offset) & guest.kernel.last for pointer in pointers]
        columns = layout.lists(guest.kernel, addresses, [])
        for index, total in enumerate(sums):
            values = [columns[part][index] if part else 0 for part in parts]
            if total is None or None in values:
                sums[index] = None
            else:
                sums[index] = [x + y % (1 << 64) for x, y in zip(total, values, strict=True)]
    return sums
