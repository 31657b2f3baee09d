"""``neighbours`` against the kernel's own netlink answers and /proc/net/arp, on every guest."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

import pytest

from virtintrospect.guests.linux import neighbours as source
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Neighbour

from . import netlink
from .lab.guest import Guest
from .netlink import ACK, CREATE, DUMP, attribute, request

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

MANY = 300

#: From gc_thresh1 on the kernel throws away what failed (neigh_periodic_work()).
_SETUP = """
rm -f /tmp/other
for family in ipv4 ipv6; do for limit in 1 2 3; do
echo 100000 > /proc/sys/net/$family/neigh/default/gc_thresh$limit; done; done
ip link set lo up; ip link set dummy0 up; ip link set dummy1 up
ip addr add 10.4.0.1/16 dev dummy0; ip -6 addr add fd04::1/64 dev dummy0
ping -c 1 -W 1 10.4.9.9; ping -c 1 127.0.0.1; ping6 -c 1 ::1
unshare -n sleep 100000 >/dev/null 2>&1 & other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/1/ns/net)" ]; do usleep 50000; done
echo $other > /tmp/other
nsenter -t $other -n sh -c 'ip link set lo up; ip link add dummy0 type dummy
ip link set dummy0 up; ip addr add 10.4.0.1/16 dev dummy0'
"""
#: RTM_NEWNEIGH, RTM_GETNEIGH; NDA_DST, NDA_LLADDR, NDA_FLAGS_EXT.
_NEW, _GET = 28, 30
_DST, _LLADDR, _FLAGS_EXT = 1, 2, 15
_STATES = {name: bit for bit, name in source._STATES.items()}
_FLAGS = {name: bit for bit, name in source._FLAGS}


@pytest.fixture(scope="module")
def busy(guest: Guest) -> Iterator[Guest]:
    """The guest with neighbours in every state, in two namespaces."""
    netlink.install(guest)
    guest.put("/tmp/neighbours.sh", _SETUP.encode())
    guest.run("sh /tmp/neighbours.sh", timeout=60, check=False)
    index = {
        name: int(guest.get(f"/sys/class/net/{name}/ifindex")) for name in ("dummy0", "dummy1")
    }
    first, second = index["dummy0"], index["dummy1"]
    requests = []
    for number, state in enumerate(("REACHABLE", "STALE", "FAILED", "NOARP", "PERMANENT")):
        requests.append(_entry(first, f"10.4.1.{number}", state))
        requests.append(_entry(first, f"fd04::1:{number}", state))
    requests += [
        _entry(second, "10.4.1.0", "PERMANENT"),
        _entry(first, "fd04::77", "PERMANENT", "router"),
        _entry(first, "10.4.2.2", "PERMANENT", "extern_learn"),
        _entry(first, "10.4.3.3", "", "proxy"),
        _entry(second, "fd04::88", "", "proxy"),
    ]
    requests += [_entry(second, f"10.5.{n >> 8}.{n & 255}", "PERMANENT") for n in range(MANY)]
    netlink.ask(guest, requests)
    other = int(guest.get("/tmp/other"))
    index_there = guest.run(f"nsenter -t {other} -n ip -o link show dummy0").split(b":")[0]
    netlink.ask(guest, [_entry(int(index_there), "10.4.1.0", "PERMANENT")], pid=other)
    yield guest
    guest.run(f"kill {other}; for n in 0 1; do ip link set dummy$n down; "
              "ip addr flush dev dummy$n; done", check=False)  # fmt: skip


def _entry(interface: int, address: str, state: str, flag: str = "") -> bytes:
    family = AF_INET6 if ":" in address else AF_INET
    body = struct.pack(
        "<BxHIHBB", family, 0, interface, _STATES.get(state, 0), _FLAGS.get(flag, 0), 0
    )
    raw = inet_pton(family, address)
    content = [attribute(_DST, raw)]
    if state not in ("FAILED", ""):
        content.append(attribute(_LLADDR, b"\2\0" + raw[-4:]))
    return request(_NEW, body, *content, flags=ACK | CREATE)


def test_neighbours(linux: LinuxGuest, busy: Guest) -> None:
    before = truth(busy)
    ours = linux.neighbours()
    after = truth(busy)
    assert linux.take_problems() == []
    namespaces = {key[0] for key in before}
    assert len(namespaces) == 2
    mine = Counter(as_netlink(row) for row in ours if row.net_namespace in namespaces)
    missing, invented = list((before & after) - mine), list(mine - (before | after))
    assert (missing[:5], invented[:5]) == ([], [])
    assert sum(mine.values()) > MANY


@pytest.mark.usefixtures("busy")
def test_every_kind_was_there(linux: LinuxGuest) -> None:
    """So that the comparison above does compare something."""
    rows = linux.neighbours()
    states = {(row.family, row.state) for row in rows}
    for family in ("inet", "inet6"):
        for state in ("STALE", "PERMANENT", "NOARP", None):
            assert (family, state) in states
    assert ("inet", "FAILED") in states
    assert {flag for row in rows for flag in row.flags} >= {"proxy", "router", "extern_learn"}
    assert {row.interface for row in rows} >= {b"lo", b"dummy0", b"dummy1"}
    assert len({row.net_namespace for row in rows if row.address == "10.4.1.0"}) == 2


def test_neighbours_of_proc(linux: LinuxGuest, busy: Guest) -> None:
    """/proc/net/arp: what is permanent there."""
    here = int(busy.run("readlink /proc/1/ns/net").strip()[5:-1])
    lines = [line.split() for line in busy.get("/proc/net/arp").splitlines()[1:]]
    theirs = {
        (words[0].decode(), words[3].decode(), words[5])
        for words in lines
        if words[2] == b"0x6"  # ATF_COM | ATF_PERM
    }
    ours = {
        (row.address, row.mac, row.interface)
        for row in linux.neighbours()
        if row.net_namespace == here and row.family == "inet" and row.permanent
    }
    assert len(ours) > MANY
    assert ours == theirs


def as_netlink(row: Neighbour) -> tuple[Any, ...]:
    """A row as :func:`truth` has it."""
    return (
        row.net_namespace, row.family, row.address, row.mac, row.interface, row.state,
        frozenset(row.flags),
    )  # fmt: skip


def truth(guest: Guest) -> Counter[tuple[Any, ...]]:
    """Every neighbour and proxy, by RTM_GETNEIGH."""
    found: Counter[tuple[Any, ...]] = Counter()
    for pid in ("1", guest.get("/tmp/other").decode().strip()):
        namespace = int(guest.run(f"readlink /proc/{pid}/ns/net").strip()[5:-1])
        names = netlink.names(guest, pid)
        asked = [
            request(_GET, struct.pack("<BxHIHBB", family, 0, 0, 0, flag, 0), flags=DUMP)
            for family in (AF_INET, AF_INET6)
            for flag in (0, _FLAGS["proxy"])
        ]
        for message in netlink.ask(guest, asked, pid=int(pid)):
            found[(namespace, *_neighbour(message.body, names))] += 1
    return found


def _neighbour(body: bytes, names: dict[int, bytes]) -> tuple[Any, ...]:
    family, _, interface, state, flags, _ = struct.unpack_from("<BxHIHBB", body)
    got = netlink.attributes(body[12:])
    flags |= int.from_bytes(got.get(_FLAGS_EXT, b""), "little") << 8
    proxy = flags & _FLAGS["proxy"]
    mac = got[_LLADDR].hex(":") if _LLADDR in got else None
    return (
        "inet" if family == AF_INET else "inet6",
        inet_ntop(family, got[_DST]),
        mac,
        names.get(interface),
        None if proxy else source._STATES[state],
        frozenset(name for name, bit in _FLAGS.items() if flags & bit),
    )
