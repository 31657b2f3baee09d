"""Sockets of every family and namespace, with the processes that have them open.

Two views are joined: the tables by which the kernel finds sockets (sockhash), and the open files
of all processes (sockfiles). A socket that only one of them has is shown all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError, NoSuchTargetError
from virtintrospect.guests.linux import sockqueues
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.interfaces import device_names
from virtintrospect.guests.linux.netns import namespaces
from virtintrospect.guests.linux.sockfiles import Holder, holders
from virtintrospect.guests.linux.sockhash import hashed
from virtintrospect.model import Problem, Socket

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: Most sockets that are shown: each costs some 2 KiB of host memory while the table is made.
LIMIT = 1 << 17
#: AF_* (include/linux/socket.h).
_UNIX, _INET, _INET6, _NETLINK, _PACKET = 1, 2, 10, 16, 17
_FAMILIES = {
    _UNIX: "unix", _INET: "inet", _INET6: "inet6", 15: "key", _NETLINK: "netlink",
    _PACKET: "packet", 21: "rds", 24: "pppox", 26: "llc", 29: "can", 30: "tipc", 31: "bluetooth",
    33: "rxrpc", 38: "alg", 40: "vsock", 41: "kcm", 42: "qipcrtr", 43: "smc", 44: "xdp", 45: "mctp",
}  # fmt: skip
#: AF_MAX is below this on every kernel.
_MAX_FAMILY = 64
#: SOCK_* (include/linux/net.h).
_TYPES = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 10: "packet"}
_RAW = 3
#: IPPROTO_* (include/uapi/linux/in.h).
_PROTOCOLS = {
    1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 33: "dccp", 58: "icmpv6", 115: "l2tp", 132: "sctp",
    136: "udplite", 262: "mptcp",
}  # fmt: skip
_TCP = 6
#: NETLINK_* (include/uapi/linux/netlink.h).
_NETLINKS = {
    0: "route", 2: "usersock", 4: "sock_diag", 5: "nflog", 6: "xfrm", 7: "selinux", 8: "iscsi",
    9: "audit", 10: "fib_lookup", 11: "connector", 12: "netfilter", 13: "ip6_fw", 14: "dnrtmsg",
    15: "kobject_uevent", 16: "generic", 18: "scsitransport", 19: "ecryptfs", 20: "rdma",
    21: "crypto", 22: "smc",
}  # fmt: skip
#: TCP_* (include/net/tcp_states.h), which other families use too.
_STATES = {
    1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT",
    7: "CLOSE", 8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING", 12: "SYN_RECV",
}  # fmt: skip
_TIME_WAIT, _CLOSE, _NEW_SYN_RECV = 6, 7, 12
#: TCP_MAX_STATES and what came after it.
_MAX_STATE = 16
#: sizeof(sun_path).
_UNIX_PATH = 108

#: ``sock_common`` is what full sockets, TIME_WAIT and requests have in common.
_COMMON = {
    "family": "skc_family",
    "state": "skc_state",
    "references": "skc_refcnt.refs.counter",
    "net": "skc_net.net",
    "namespace": "skc_net.net.ns.inum",
    "num": "skc_num",
    "dport": "skc_dport",
    "daddr": "skc_daddr",
    "saddr": "skc_rcv_saddr",
    "daddr6": "skc_v6_daddr.in6_u.u6_addr8?",
    "saddr6": "skc_v6_rcv_saddr.in6_u.u6_addr8?",
}
#: What two looks must agree on.
_SHOWN = (
    "family", "net", "protocol", "inode", "path", "local_address", "local_port", "remote_address",
    "remote_port",
)  # fmt: skip
#: How often a socket is read again that changed meanwhile.
_ATTEMPTS = 3
#: Address of each ``struct sock``: who has it open.
Owners = dict[int, list[Holder]]
#: Members of ``struct sock``.
_WHOLE = {"type": "sk_type", "number": "sk_protocol", "it": "sk_socket", "uid": "sk_uid.val"}
_WHOLE |= sockqueues.MEMBERS


def sockets(guest: LinuxGuest, *, pid: int | None = None, listening: bool = False) -> list[Socket]:
    """The rows of ``sockets``: those of processes in order of pid, then those without owner."""
    budget = Budget()
    unreadable: dict[int, str] = {}
    owners = holders(guest, budget, pid, unreadable)
    addresses = list(owners)
    if pid is None:
        nets = namespaces(guest, budget)
        addresses = list(dict.fromkeys([*addresses, *hashed(guest, list(nets), budget)]))
    if len(addresses) > LIMIT:
        guest.note(f"more than {LIMIT} sockets: the rest is left out", addresses[LIMIT])
    rows = _settled(guest, _Reader(guest, budget), addresses[:LIMIT])
    if guest.live:
        rows, owners = _still_held(guest, rows, owners, pid, unreadable)
    guest.note_all(Problem(what, address) for address, what in unreadable.items())
    nobody: list[Holder | None] = [None]
    found = [
        _record(row, holder)
        for row in rows
        if not listening or _listens(row)
        for holder in owners.get(row["address"]) or nobody
    ]
    guest.note_all([budget.problem])
    last = (1 << 32, 0)
    return sorted(found, key=lambda row: last if row.pid is None else (row.pid, row.fd or 0))


def _listens(row: Row) -> bool:
    """Whether anybody may send to it: as ``ss --listening`` has it for what is not a stream."""
    if row["shown_state"] == "LISTEN":
        return True
    bound = row["family"] in (_INET, _INET6) and row["protocol"] in ("udp", "udplite", "raw")
    return bound and row["state"] == _CLOSE and bool(row["local_port"])


def _settled(guest: LinuxGuest, reader: _Reader, addresses: list[int]) -> list[Row]:
    """Rows that two looks in a row find the same: memory of closed sockets is soon another's."""
    last = {row["address"]: row for row in reader.rows(addresses)}
    bad = reader.bad
    kept = {} if guest.live else last
    pending = addresses
    for attempt in range(_ATTEMPTS if guest.live else 0):
        guest.memory.expire()
        now = {row["address"]: row for row in reader.rows(pending)}
        if not attempt:
            bad = {address: what for address, what in bad.items() if address in reader.bad}
        kept |= {a: row for a, row in now.items() if a in last and _alike(row, last[a])}
        pending = [address for address in now if address not in kept]
        last = now
        if not pending:
            break
    guest.note_all(Problem(what, address) for address, what in bad.items())
    if changed := [address for address in pending if address not in kept]:
        guest.note(f"{len(changed)} sockets changed while they were read", changed[0])
    return [kept[address] for address in addresses if address in kept]


def _alike(first: Row, second: Row) -> bool:
    return all(first[name] == second[name] for name in _SHOWN)


def _still_held(
    guest: LinuxGuest, rows: list[Row], owners: Owners, pid: int | None, unreadable: dict[int, str]
) -> tuple[list[Row], Owners]:
    """Descriptors that lead to the same socket now; a socket that lost all of its is gone."""
    still: dict[int, str] = {}
    try:
        again = holders(guest, Budget(), pid, still)
    except NoSuchTargetError:  # it ended meanwhile
        again = {}
    for address in unreadable.keys() - still.keys():
        del unreadable[address]
    kept: Owners = {}
    for address, before in owners.items():
        now = set(again.get(address, ()))
        kept[address] = [holder for holder in before if holder in now]
    # What is open has a struct socket; one without is in the middle of being closed.
    there = [
        row
        for row in rows
        if row["address"] not in kept or (kept[row["address"]] and row["inode"] is not None)
    ]
    if len(there) < len(rows):
        guest.note(f"{len(rows) - len(there)} sockets were closed while they were read", 0)
    return there, kept


def _record(row: Row, holder: Holder | None) -> Socket:
    return Socket(
        pid=holder.pid if holder else None,
        fd=holder.fd if holder else None,
        socket=row["inode"] or None,
        family=_FAMILIES.get(row["family"], f"af_{row['family']}"),
        protocol=row["protocol"],
        local_address=row["local_address"],
        local_port=row["local_port"],
        remote_address=row["remote_address"],
        remote_port=row["remote_port"],
        state=row["shown_state"],
        path=row["path"],
        recv_queue=row["recv_queue"],
        send_queue=row["send_queue"],
        uid=row["uid"],
        net_namespace=row["namespace"],
        address=row["address"],
    )


class _Reader:
    """Reads what sockets are, family by family, each in bulk."""

    def __init__(self, guest: LinuxGuest, budget: Budget) -> None:
        self._guest = guest
        self._budget = budget
        #: What was no socket when :meth:`rows` was last called, and why.
        self.bad: dict[int, str] = {}

    def rows(self, addresses: list[int]) -> list[Row]:
        """A row for each address that is a socket."""
        self.bad = {}
        text = ("daddr6", "saddr6") if self._has_inet6() else ()
        rows = self._lists("sock_common", _COMMON, addresses, text)
        rows = [row for row in rows if self._plausible(row)]
        whole = [row for row in rows if not _is_small(row)]
        self._extend(whole, "sock", _WHOLE)
        self._inodes(whole)
        sockqueues.fill(self._guest, whole, self._budget)
        small = [row for row in rows if row["state"] == _TIME_WAIT and _is_small(row)]
        self._extend(small, "inet_timewait_sock", {"substate": "tw_substate"})
        families: dict[int, Callable[[list[Row]], None]] = {
            _INET: self._inet,
            _INET6: self._inet,
            _UNIX: self._unix,
            _NETLINK: self._netlink,
            _PACKET: self._packet,
        }
        for row in rows:
            row["shown_state"] = _state(row)
            row["protocol"] = _TYPES.get(row.get("type") or 0)
        for family, read in families.items():
            if some := [row for row in rows if row["family"] == family]:
                read(some)
        return rows

    def _has_inet6(self) -> bool:
        return self._guest.types.has("sock_common", "skc_v6_daddr")

    def _plausible(self, row: Row) -> bool:
        if row["family"] is None or row["state"] is None:
            self.bad[row["address"]] = "unreadable socket"
            return False
        if not 0 < row["family"] < _MAX_FAMILY or row["state"] > _MAX_STATE:
            self.bad[row["address"]] = "socket of an impossible kind"
            return False
        # Nobody refers to it: its memory is free, though nothing else is there yet.
        return row["references"] > 0 or not self._guest.live

    def _lists(
        self, name: str, members: dict[str, str], addresses: list[int], text: tuple[str, ...] = ()
    ) -> list[Row]:
        layout = self._guest.layout(name, members, text=text)
        columns = layout.lists(self._guest.kernel, addresses, [])
        empty: Row = {
            "local_address": None, "local_port": None, "remote_address": None,
            "remote_port": None, "path": None, "inode": None, "type": None, "number": None,
            "uid": None, "recv_queue": None, "send_queue": None,
        }  # fmt: skip
        return [
            empty | dict(zip(columns, values, strict=True)) | {"address": address}
            for address, values in zip(addresses, zip(*columns.values(), strict=True), strict=True)
        ]

    def _extend(self, rows: list[Row], name: str, members: dict[str, str]) -> None:
        """Add members of a larger structure around the same address."""
        layout = self._guest.layout(name, members, text=())
        columns = layout.lists(self._guest.kernel, [row["address"] for row in rows], [])
        for row, values in zip(rows, zip(*columns.values(), strict=True), strict=True):
            row.update(zip(columns, values, strict=True))

    def _inodes(self, rows: list[Row]) -> None:
        """``sock_i_ino()``: the inode lies behind the ``struct socket``."""
        there = [row for row in rows if row["it"]]
        offset = self._guest.types.offsetof("socket_alloc", "socket")
        layout = self._guest.layout("socket_alloc", {"inode": "vfs_inode.i_ino"}, text=())
        addresses = [row["it"] - offset for row in there]
        inodes = layout.lists(self._guest.kernel, addresses, [])["inode"]
        for row, inode in zip(there, inodes, strict=True):
            row["inode"] = inode

    # -- families -----------------------------------------------------------------------------

    def _inet(self, rows: list[Row]) -> None:
        """Both IP versions; ports of a raw socket are its protocol's number, as in /proc."""
        from socket import AF_INET, AF_INET6, inet_ntop

        for row in rows:
            if not _is_small(row):
                raw = row["type"] == _RAW
                row["protocol"] = "raw" if raw else _protocol(row["number"], _PROTOCOLS)
            else:
                row["protocol"] = _PROTOCOLS[_TCP]
            row["local_port"] = row["num"]
            row["remote_port"] = _swapped(row["dport"])
            for name, four, six in (
                ("local_address", row["saddr"], row["saddr6"]),
                ("remote_address", row["daddr"], row["daddr6"]),
            ):
                if row["family"] == _INET:
                    row[name] = inet_ntop(AF_INET, (four & 0xFFFF_FFFF).to_bytes(4, "little"))
                elif six is not None and len(six) == 16:
                    row[name] = inet_ntop(AF_INET6, six)

    def _unix(self, rows: list[Row]) -> None:
        """Names: of files, or with an ``@`` in front abstract ones (net/unix/af_unix.c)."""
        members = {"name": "addr", "users": "addr.refcnt.refs.counter"}
        self._extend(rows, "unix_sock", members)
        # A name without users is free memory.
        named = [row for row in rows if row["name"] and (row["users"] or not self._guest.live)]
        types, kernel = self._guest.types, self._guest.kernel
        lengths_at = types.offsetof("unix_address", "len")
        path_at = types.offsetof("unix_address", "name") + types.offsetof("sockaddr_un", "sun_path")
        faults: list[int] = []
        data = kernel.gather([row["name"] + lengths_at for row in named], 4, faults)
        lengths = struct.unpack(f"<{len(named)}i", data)
        short: list[int] = []
        paths = kernel.gather([row["name"] + path_at for row in named], _UNIX_PATH, short)
        behind = types.offsetof("sockaddr_un", "sun_path")
        unreadable, partly = set(faults), set(short)
        for index, (row, length) in enumerate(zip(named, lengths, strict=True)):
            size = length - behind
            if index in unreadable or not 0 < size <= _UNIX_PATH + 1:
                self._guest.note("unreadable name of a UNIX socket", row["name"])
                continue
            path = paths[index * _UNIX_PATH : (index + 1) * _UNIX_PATH]
            if index in partly:  # the last object of memory: less than the longest name is there
                path = self._short_path(row["name"] + path_at, size)
            if not self._budget.keep(size):
                return
            path = path[:size]
            row["path"] = path.split(b"\0", 1)[0] if path[:1] != b"\0" else b"@" + path[1:]

    def _short_path(self, address: int, size: int) -> bytes:
        try:
            return self._guest.kernel.read(address, size)
        except FaultError as error:
            self._guest.note("unreadable name of a UNIX socket", error.address)
            return b"?"

    def _netlink(self, rows: list[Row]) -> None:
        self._extend(rows, "netlink_sock", {"portid": "portid", "dst_portid": "dst_portid"})
        for row in rows:
            row["protocol"] = _protocol(row["number"], _NETLINKS)
            row["local_port"] = row["portid"]
            row["remote_port"] = row["dst_portid"] or None

    def _packet(self, rows: list[Row]) -> None:
        """Packet sockets: the interface, and as port the EtherType."""
        self._extend(rows, "packet_sock", {"ifindex": "ifindex", "ethertype": "num"})
        names = device_names(self._guest, self._budget)
        for row in rows:
            if row["ethertype"] is not None:
                row["local_port"] = _swapped(row["ethertype"])
            row["local_address"] = names.get((row["net"], row["ifindex"]))


def _is_small(row: Row) -> bool:
    """No ``struct sock``, but what is kept of one: TIME_WAIT, or a request."""
    return row["family"] in (_INET, _INET6) and row["state"] in (_TIME_WAIT, _NEW_SYN_RECV)


def _swapped(number: int) -> int:
    """A port in network byte order."""
    return number >> 8 & 0xFF | (number & 0xFF) << 8


def _protocol(number: int | None, names: dict[int, str]) -> str | None:
    return None if number is None else names.get(number, str(number))


def _state(row: Row) -> str | None:
    """In the words of ss(8), but whole ones; only TCP closes, others are not connected."""
    family, state = row["family"], row["state"]
    if family == _NETLINK and not state:
        state = _CLOSE  # NETLINK_UNCONNECTED
    if _is_small(row):
        return _STATES.get(row.get("substate") or state)
    if state == _CLOSE and not (family in (_INET, _INET6) and row["number"] == _TCP):
        return "UNCONNECTED"
    return _STATES.get(state)
