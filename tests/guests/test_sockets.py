"""``sockets`` against /proc/PID/net and /proc/PID/fd, in two namespaces, on every guest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from virtintrospect.errors import NoSuchTargetError
from virtintrospect.guests.linux import sockets as source
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Socket
from virtintrospect.session import open_session

from .lab.guest import Guest

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

#: By default the kernel gives up what nobody answers after one and two minutes.
_SETUP = """
cd /tmp; rm -f init.log other.log; echo "0 0" > /proc/sys/net/ipv4/ping_group_range
for retries in syn synack; do echo 20 > /proc/sys/net/ipv4/tcp_${retries}_retries; done
ip link set lo up; ip addr add 10.99.0.1/16 dev dummy0; ip link set dummy0 up
for table in tcp_child_ehash udp_child_hash; do  # the second namespace has tables of its own
echo 256 > /proc/sys/net/ipv4/${table}_entries; done 2>/dev/null
/tmp/sockets init > /tmp/init.log 2>&1 & first=$!
unshare -n sh -c 'echo "0 0" > /proc/sys/net/ipv4/ping_group_range
for retries in syn synack; do echo 20 > /proc/sys/net/ipv4/tcp_${retries}_retries; done
ip link set lo up; ip link add dummy0 type dummy; ip addr add 10.99.0.1/16 dev dummy0
ip link set dummy0 up; exec /tmp/sockets other' > /tmp/other.log 2>&1 & second=$!
until grep -q ready /tmp/init.log && grep -q ready /tmp/other.log; do usleep 100000; done
echo $first $second > /tmp/owners; cat /tmp/init.log /tmp/other.log
"""
_TABLES = "tcp tcp6 udp udp6 udplite udplite6 raw raw6 icmp icmp6 unix netlink packet"
_ASK = f"""
for pid in $(cat /tmp/owners); do readlink /proc/$pid/ns/net
for table in {_TABLES}; do [ -e /proc/$pid/net/$table ] && echo "table $table" && \
cat /proc/$pid/net/$table; done; done
echo files; ls -l /proc/[0-9]*/fd 2>/dev/null
"""
_STATES = source._STATES


class Truth(NamedTuple):
    """What the guest says: sockets by namespace, and who has which open."""

    sockets: Counter[tuple[Any, ...]]
    #: (pid, fd, inode)
    files: set[tuple[int, int, int]]
    #: What waits in packet sockets, by inode: nobody reads it, and it becomes more.
    waiting: dict[int, int]


@pytest.fixture(scope="module")
def busy(guest: Guest) -> Iterator[Guest]:
    """The guest with sockets of every kind, in two namespaces."""
    guest.install("sockets", "/tmp/sockets")
    guest.put("/tmp/setup.sh", _SETUP.encode())
    said = guest.run("sh /tmp/setup.sh", timeout=180).decode()
    assert said.split() == ["ready", "ready"], said
    yield guest
    guest.run("killall sockets; ip addr flush dev dummy0", check=False)


@pytest.fixture
def linux(busy: Guest) -> Iterator[LinuxGuest]:
    with open_session(busy.name) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        yield linux


def test_sockets(linux: LinuxGuest, busy: Guest) -> None:
    before = truth(busy)
    ours = linux.sockets()
    after = truth(busy)
    assert linux.take_problems() == []
    namespaces = {key[0] for key in before.sockets}
    assert len(namespaces) == 2
    by_address = {row.address: row for row in ours if row.net_namespace in namespaces}
    mine = Counter(as_proc(row) for row in by_address.values())
    stable = before.sockets & after.sockets
    assert not stable - mine, "sockets of /proc that we do not have"
    unseen = mine - (before.sockets | after.sockets)
    # What no table of the kernel has is there by a descriptor alone.
    open_only = [row for row in by_address.values() if as_proc(row) in unseen]
    assert all(row.pid for row in open_only), "sockets that neither /proc/net nor a process has"
    kinds = {(row.family, row.protocol) for row in open_only}
    assert kinds <= {
        ("inet", "tcp"), ("inet", "udp"), ("inet", "mptcp"), ("netlink", "generic"),
        ("vsock", "stream"), ("inet", "icmp"),
    }, kinds  # fmt: skip
    held = {(row.pid, row.fd, row.socket) for row in ours if row.pid is not None}
    for row in by_address.values():
        if row.family == "packet":
            low, high = before.waiting[row.socket or 0], after.waiting[row.socket or 0]
            assert low <= (row.recv_queue or 0) <= high
    assert before.files & after.files <= held
    assert held <= before.files | after.files


def test_every_kind_was_there(linux: LinuxGuest, busy: Guest) -> None:
    """So that the comparison above does compare something."""
    busy.run("/tmp/sockets closed")  # TIME_WAIT lasts a minute: those of the start may be gone
    rows = linux.sockets()
    states = Counter(row.state for row in rows if row.protocol == "tcp")
    for state in (
        "LISTEN", "ESTABLISHED", "TIME_WAIT", "FIN_WAIT2", "CLOSE_WAIT", "SYN_SENT", "CLOSE",
    ):  # fmt: skip
        assert states[state] >= 2, (state, states)
    kinds = Counter((row.family, row.protocol) for row in rows)
    for kind in (
        ("inet6", "tcp"), ("inet6", "udp"), ("inet", "raw"), ("inet6", "raw"), ("inet", "icmp"),
        ("unix", "stream"), ("unix", "dgram"), ("unix", "seqpacket"), ("netlink", "route"),
        ("netlink", "kobject_uevent"), ("packet", "raw"), ("packet", "dgram"), ("vsock", "stream"),
    ):  # fmt: skip
        assert kinds[kind] >= 2, (kind, kinds)
    mapped = [row for row in rows if (row.remote_address or "").startswith("::ffff:127.")]
    assert len([row for row in mapped if row.protocol == "tcp"]) >= 4
    paths = {row.path for row in rows}
    assert b"/tmp/odd \x1b[31m\xff\x01 init" in paths
    assert b"@abstract\x1b\xff\0middle" in paths
    assert {len(path) for path in paths if path} >= {108}
    assert {row.local_address for row in rows if row.family == "packet"} == {None, b"dummy0"}
    assert [row for row in rows if row.pid is None and row.state == "ESTABLISHED"]


def test_requests(linux: LinuxGuest) -> None:
    """Half-open connections, which are nobody's yet."""
    rows = [row for row in linux.sockets() if row.state == "SYN_RECV"]
    assert {row.remote_address for row in rows} >= {"10.99.0.77", "::ffff:10.99.0.77"}
    assert {row.local_port for row in rows} >= {7001, 7002}
    assert all(row.pid is None and row.remote_port == 4077 for row in rows)


def test_queues_and_users(linux: LinuxGuest, busy: Guest) -> None:
    """What /proc does not say, and what the comparison must have seen."""
    pid = int(busy.get("/tmp/owners").split()[0])
    rows = linux.sockets(pid)
    tcp = [row for row in rows if row.local_port == 7020 and row.protocol == "tcp"]
    assert {(row.state, row.recv_queue, row.send_queue) for row in tcp} == {
        ("LISTEN", 3, 5), ("ESTABLISHED", 77, 0),
    }  # fmt: skip
    back = [row.recv_queue or 0 for row in rows if row.remote_port == 7020]
    assert sorted(back) == [0, 0, 0, 44]
    udp = {row.local_port: row.recv_queue or 0 for row in rows if row.protocol == "udp"}
    assert udp[7021] > 33
    assert udp[7022] > udp[7021]
    unix = Counter((row.protocol, row.recv_queue) for row in rows if row.family == "unix")
    assert unix.keys() == {
        ("stream", 0), ("stream", 1), ("stream", 102), ("seqpacket", 0), ("seqpacket", 1),
        ("seqpacket", 43), ("dgram", 0), ("dgram", 61),
    }  # fmt: skip
    assert {(row.path, row.recv_queue, row.send_queue) for row in rows if row.family == "unix"
            and row.state == "LISTEN"} == {
        (b"/tmp/stream-init", 1, 4), (b"@abstract\x1b\xff\0middle", 1, 1),
    }  # fmt: skip
    sending = [row for row in rows if row.family == "unix" and (row.send_queue or 0) > 100]
    assert len(sending) == 3
    assert {(row.family, row.protocol) for row in rows if row.uid == 4242} == {
        ("inet", "tcp"), ("inet6", "udp"), ("unix", "dgram"), ("netlink", "generic"),
    }  # fmt: skip
    assert {row.uid for row in rows} == {0, 4242}


def test_sockets_of_a_process(linux: LinuxGuest, busy: Guest) -> None:
    pid = int(busy.get("/tmp/owners").split()[0])
    ours = linux.sockets(pid)
    again = [row for row in linux.sockets() if row.pid == pid]
    assert [_still(row) for row in ours] == [_still(row) for row in again]
    assert {(row.pid, row.fd, row.socket) for row in ours} == {
        file for file in truth(busy).files if file[0] == pid
    }
    assert linux.sockets(2) == []
    with pytest.raises(NoSuchTargetError):
        linux.sockets(4_000_000)


def _still(row: Socket) -> Socket:
    """Without what comes in by itself."""
    return replace(row, recv_queue=None) if row.family == "packet" else row


def test_listening(linux: LinuxGuest, busy: Guest) -> None:
    pid = int(busy.get("/tmp/owners").split()[0])
    rows = linux.sockets(pid, listening=True)
    ports = {(row.protocol, row.local_port) for row in rows if row.family in ("inet", "inet6")}
    assert ports >= {("tcp", 7001), ("tcp", 7002), ("udp", 7003), ("udp", 7004), ("raw", 1)}
    assert {row.local_port for row in rows} & {7010} == set()
    assert {row.path for row in rows if row.family == "unix"} == {
        b"/tmp/stream-init", b"@abstract\x1b\xff\0middle",
    }  # fmt: skip


def as_proc(row: Socket) -> tuple[Any, ...]:
    """A row in the terms of /proc/net."""
    namespace, inode = row.net_namespace, row.socket or 0
    if row.family in ("inet", "inet6"):
        state = "CLOSE" if row.state == "UNCONNECTED" else row.state
        local, remote = (row.local_address, row.local_port), (row.remote_address, row.remote_port)
        listens = state == "LISTEN"  # /proc does not say how many may wait
        queues = (row.recv_queue, 0 if listens else row.send_queue)
        if None in queues:  # TIME_WAIT, requests
            queues = (0, 0)
        # Until 7.0 /proc forgets the user of what has no descriptor any more.
        uid = row.uid if inode else 0
        return namespace, row.family, row.protocol, local, remote, state, inode, *queues, uid
    if row.family == "unix":
        path = (row.path or b"").replace(b"\0", b"@")
        return namespace, "unix", row.protocol, row.state, path, inode
    if row.family == "netlink":
        numbers = {name: number for number, name in source._NETLINKS.items()}
        number = numbers.get(row.protocol or "", row.protocol)
        queues = (row.recv_queue, row.send_queue)
        return namespace, "netlink", number, row.local_port, inode, *queues
    interface = row.local_address
    return namespace, row.family, row.protocol, interface, row.local_port, inode, row.uid


def truth(guest: Guest) -> Truth:
    found: Counter[tuple[Any, ...]] = Counter()
    files: set[tuple[int, int, int]] = set()
    waiting: dict[int, int] = {}
    namespace = pid = 0
    table = ""
    for line in guest.run(_ASK, timeout=180).split(b"\n"):
        if match := re.fullmatch(rb"net:\[(\d+)\]", line):
            namespace, table = int(match[1]), ""
        elif match := re.fullmatch(rb"table (\w+)", line):
            table = match[1].decode()
        elif line == b"files":
            table = "files"
        elif match := re.fullmatch(rb"/proc/(\d+)/fd:", line):
            pid = int(match[1])
        elif match := re.search(rb" (\d+) -> socket:\[(\d+)\]$", line):
            files.add((pid, int(match[1]), int(match[2])))
        elif table != "files" and re.match(rb" *[0-9a-f]+:? ", line):
            found[(namespace, *_line(table, line))] += 1
            if table == "packet":
                waiting[int(line.split()[8])] = int(line.split()[6])
    return Truth(found, files, waiting)


def _line(table: str, line: bytes) -> tuple[Any, ...]:
    """A line of a table of /proc/net."""
    words = line.split()
    if table == "unix":
        _, _, _, flags, kind, state, inode, *_ = words
        path = re.sub(rb"^(\S+ +){6}\S+ ?", b"", line)
        connected = "ESTABLISHED" if state in (b"03", b"02") else "UNCONNECTED"
        shown = "LISTEN" if int(flags, 16) & 0x10000 else connected
        return "unix", source._TYPES[int(kind, 16)], shown, path, int(inode)
    if table == "netlink":
        return "netlink", int(words[1]), int(words[2]), int(words[9]), int(words[4]), int(words[5])
    if table == "packet":
        interface = b"dummy0" if int(words[4]) else None
        user = int(words[8]), int(words[7])
        return "packet", source._TYPES[int(words[2])], interface, int(words[3], 16), *user
    family = "inet6" if table.endswith("6") else "inet"
    protocol = {"icmp6": "icmpv6"}.get(table, table.removesuffix("6"))
    ends = _end(words[1]), _end(words[2])
    sent, _, received = words[4].partition(b":")
    uid = int(words[7]) if int(words[9]) else 0
    queues = int(received, 16), int(sent, 16), uid
    return family, protocol, *ends, _STATES[int(words[3], 16)], int(words[9]), *queues


def _end(word: bytes) -> tuple[str, int]:
    from socket import AF_INET, AF_INET6, inet_ntop

    address, port = word.split(b":")
    raw = b"".join(
        bytes.fromhex(address[at : at + 8].decode())[::-1] for at in range(0, len(address), 8)
    )
    return inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw), int(port, 16)
