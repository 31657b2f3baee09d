"""What a veth pair counts (``veth_get_stats64()`` of drivers/net/veth.c).

Each end counts what it sends, per CPU; what it received is what its peer has sent. Frames that go
through XDP or NAPI are counted by the queue that takes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import CorruptDataError, VirtIntrospectError
from virtintrospect.guests.linux.netpriv import counter, driver_types, private
from virtintrospect.symbols.layout import Layout

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.types import Types

Row = dict[str, Any]

#: Most queues of one device; the kernel allows 4,096 (drivers/net/veth.c).
_MAX_QUEUES = 4096
_STATS = ("xdp_packets", "xdp_bytes", "rx_drops", "xdp_tx_err", "peer_tq_xdp_xmit_err")


class _End(NamedTuple):
    """One end of a pair."""

    peer: int
    dropped: int
    #: Sums over the queues, in the order of :data:`_STATS`.
    packets: int
    bytes: int
    drops: int
    transmit_errors: int
    peer_errors: int


def counters(
    guest: LinuxGuest, rows: list[Row], sent: list[list[int] | None]
) -> list[dict[str, int] | None]:
    """What each end counted, by the names of ``rtnl_link_stats64``.

    :param rows: each with ``device``, the address of its ``net_device``, and ``queues``.
    :param sent: of each what it has sent, summed over the CPUs: packets, and bytes.
    :returns: ``None`` where it is not known: no types of the module, or a peer out of sight.
    """
    types = driver_types(guest, "veth", "veth_priv") if rows else None
    if types is None:
        return [None] * len(rows)
    ends = {row["device"]: _end(guest, types, row) for row in rows}
    out = {row["device"]: pair for row, pair in zip(rows, sent, strict=True)}
    return [_of_pair(row["device"], ends, out) for row in rows]


def _of_pair(
    device: int, ends: dict[int, _End | None], sent: dict[int, list[int] | None]
) -> dict[str, int] | None:
    mine, own = ends[device], sent[device]
    if mine is None or own is None:
        return None
    theirs = ends.get(mine.peer)
    other = sent.get(mine.peer)
    if theirs is None or other is None:
        return None
    return {
        "rx_packets": mine.packets + other[0],
        "rx_bytes": mine.bytes + other[1],
        "rx_dropped": mine.drops + mine.peer_errors + theirs.transmit_errors,
        "tx_packets": own[0] + theirs.packets,
        "tx_bytes": own[1] + theirs.bytes,
        "tx_dropped": mine.dropped + mine.transmit_errors + theirs.peer_errors,
    }


def _end(guest: LinuxGuest, types: Types, row: Row) -> _End | None:
    members = {"peer": "peer", "dropped": "dropped.counter", "rq": "rq"}
    try:
        place = row["device"] + private(types)
        own = Layout(types, "veth_priv", members, text=()).read(guest.kernel, place)
        if not 0 < (row["queues"] or 0) <= _MAX_QUEUES:
            raise CorruptDataError(f"a veth device with {row['queues']} queues", place)
        size = types.sizeof("veth_rq")
        queues = [own["rq"] + number * size for number in range(row["queues"])]
        paths = {name: counter(f"stats.vs.{name}") for name in _STATS}
        columns = Layout(types, "veth_rq", paths, text=()).lists(guest.kernel, queues)
    except VirtIntrospectError as error:
        guest.note(f"no counters of veth: {error.message}", row["device"])
        return None
    return _End(own["peer"], own["dropped"], *(sum(columns[name]) for name in _STATS))
