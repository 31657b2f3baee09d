"""What waits in sockets, as ``ss`` shows it (net/*/*_diag.c, and the files of /proc/net).

Of a TCP connection bytes that were not read, or not acknowledged; of a listener connections that
were not accepted, and how many may wait; of datagrams the memory that they take. Where a family
has another idea of it (MPTCP, SCTP, vsock), it is not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: AF_*, SOCK_*, IPPROTO_*, TCP_LISTEN.
_UNIX, _INET, _INET6, _NETLINK, _PACKET = 1, 2, 10, 16, 17
_DGRAM, _RAW = 2, 3
_TCP, _UDPS = 6, (17, 136)
_LISTEN = 10
#: Longest queue of a UNIX socket that is followed; datagrams wait by tens
#: (net.unix.max_dgram_qlen), a stream's buffer is full after some hundreds.
_LONGEST = 4096
_U32 = 0xFFFF_FFFF

#: Members of ``struct sock``.
MEMBERS = {
    "backlog": "sk_ack_backlog",
    "max_backlog": "sk_max_ack_backlog",
    "rmem": "sk_backlog.rmem_alloc.counter",
    "wmem": "sk_wmem_alloc.refs.counter",
    "waiting": "sk_receive_queue.qlen",
    "oldest": "sk_receive_queue.next",
}


def fill(guest: LinuxGuest, rows: list[Row], budget: Budget) -> None:
    """Give each row its ``recv_queue`` and ``send_queue``, ``None`` where they are not known.

    :param rows: full sockets, with :data:`MEMBERS`, ``address``, ``family``, ``type``,
        ``number`` (the protocol) and ``state``.
    """
    tcp, udp, unix = [], [], []
    for row in rows:
        family, number = row["family"], row["number"]
        inet = family in (_INET, _INET6) and row["type"] != _RAW
        if row["rmem"] is None:
            continue
        if row["state"] == _LISTEN and (family == _UNIX or (inet and number == _TCP)):
            row["recv_queue"], row["send_queue"] = row["backlog"], row["max_backlog"]
            if family == _UNIX:
                row["recv_queue"] = row["waiting"]
        elif inet and number == _TCP:
            tcp.append(row)
        elif family == _UNIX:
            unix.append(row)
        elif family in (_NETLINK, _PACKET) or row["type"] in (_DGRAM, _RAW):
            row["recv_queue"] = max(row["rmem"], 0)
            row["send_queue"] = _sent(row)
            if inet and number in _UDPS:
                udp.append(row)
    _tcp(guest, tcp)
    _udp(guest, udp)
    _unix(guest, unix, budget)


def _sent(row: Row) -> int:
    """``sk_wmem_alloc_get()``: the socket itself counts as one byte."""
    return int(max(row["wmem"] - 1, 0))


def _tcp(guest: LinuxGuest, rows: list[Row]) -> None:
    """Distances of sequence numbers, which wrap (``get_tcp4_sock()``, net/ipv4/tcp_ipv4.c)."""
    layout = guest.layout("tcp_sock", ["rcv_nxt", "copied_seq", "write_seq", "snd_una"], text=())
    columns = layout.lists(guest.kernel, [row["address"] for row in rows], [])
    for row, *values in zip(rows, *columns.values(), strict=True):
        if None in values:
            continue
        received, copied, written, acknowledged = values
        unread = (received - copied) & _U32
        row["recv_queue"] = unread if unread < 1 << 31 else 0
        row["send_queue"] = (written - acknowledged) & _U32


def _udp(guest: LinuxGuest, rows: list[Row]) -> None:
    """``udp_rqueue_get()``: without what was read already but not yet given back."""
    layout = guest.layout("udp_sock", {"deficit": "forward_deficit?"}, text=())
    deficits = layout.lists(guest.kernel, [row["address"] for row in rows], [])["deficit"]
    for row, deficit in zip(rows, deficits, strict=True):
        row["recv_queue"] = max(row["recv_queue"] - (deficit or 0), 0)


def _unix(guest: LinuxGuest, rows: list[Row], budget: Budget) -> None:
    """``unix_inq_len()``: bytes of all buffers that wait, of datagrams those of the next one.

    A queue that another CPU changes meanwhile does not end where it must; then it is not known.
    """
    types = guest.types
    head_at = types.offsetof("sock", "sk_receive_queue")
    consumed_at = types.offsetof("sk_buff", "cb") + types.offsetof("unix_skb_parms", "consumed")
    layout = guest.layout("sk_buff", {"next": "next", "len": "len"}, text=())
    for row in rows:
        row["send_queue"] = _sent(row)
        row["recv_queue"] = None if row["waiting"] else 0
    pending = [(row, row["oldest"], 0, 0) for row in rows if row["waiting"]]
    for _ in range(_LONGEST):
        pending = pending[: budget.follow(len(pending))]
        if not pending or budget.late():
            return
        buffers = [item[1] for item in pending]
        columns = layout.lists(guest.kernel, buffers, [])
        faults: list[int] = []
        raw = guest.kernel.gather([buffer + consumed_at for buffer in buffers], 4, faults)
        consumed: Any = memoryview(raw).cast("I")
        following, bad = [], set(faults)
        for index, (row, _, count, total) in enumerate(pending):
            after, length = columns["next"][index], columns["len"][index]
            if length is None or index in bad:
                continue
            if row["type"] == _DGRAM:
                row["recv_queue"] = length
                continue
            total += max(length - consumed[index], 0)
            if count + 1 < row["waiting"]:
                following.append((row, after, count + 1, total))
            elif after == row["address"] + head_at:
                row["recv_queue"] = total
        pending = following
