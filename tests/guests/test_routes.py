"""``routes`` against the kernel's own netlink answers and /proc/net, on every guest."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

import pytest

from virtintrospect.guests.linux import routes as source
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Route

from . import netlink
from .lab.guest import Guest
from .netlink import ACK, CREATE, DUMP, attribute, number, request

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

MANY = 1200

_SETUP = """
rm -f /tmp/other
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up; ip link set dummy0 up; ip link set dummy1 up
ip addr add 10.1.2.3/24 dev dummy0; ip addr add 10.1.9.3/32 dev dummy0
ip -6 addr add fd00:1::1/64 dev dummy0; ip -6 addr add fd00:2::1/64 dev dummy1
ip addr add 10.2.2.3/16 dev dummy1
ip route add default via 10.1.2.1 metric 5
ip route add 192.0.2.0/25 via 10.1.2.9 src 10.1.9.3 mtu 1400
ip route add 192.0.2.0/25 dev dummy1 metric 7
ip route add 198.51.100.0/24 dev dummy0 table 100 scope link
ip route add blackhole 203.0.113.0/24; ip route add unreachable 203.0.113.128/25
ip route add prohibit 203.0.113.64/26 table 200; ip route add throw 203.0.113.32/27 table 200
ip -6 route add default via fd00:1::2 dev dummy0; ip -6 route add default via fe80::7 dev dummy1
ip -6 route add 2001:db8::/33 via fd00:1::3 metric 9 mtu 1300
ip -6 route add 2001:db8::1/128 dev dummy1 table 300
ip -6 route add unreachable 2001:db8:f::/48; ip -6 route add blackhole 2001:db8:e::/48
ip rule add from 10.77.0.0/16 table 200
unshare -n sleep 100000 >/dev/null 2>&1 & other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/1/ns/net)" ]; do usleep 50000; done
echo $other > /tmp/other
nsenter -t $other -n sh -c '
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; ip link set lo up
ip link add dummy0 type dummy; ip link set dummy0 up; ip addr add 172.16.0.1/12 dev dummy0
ip route add default via 172.16.0.2; ip -6 addr add fd07::1/16 dev dummy0
ip -6 route add default via fd07::2'
"""

#: RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWNEXTHOP, RTM_DELNEXTHOP.
_NEW, _GET, _NEW_HOP, _DELETE_HOP = 24, 26, 104, 105
#: RTA_*.
_DST, _SRC, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH = 1, 2, 4, 5, 6, 7, 8, 9
_TABLE, _VIA, _NH_ID = 15, 18, 30
#: NHA_*.
_ID, _GROUP, _NHA_OIF, _NHA_GATEWAY = 1, 2, 5, 6
_FLAGS = {name: bit for bit, name in source._FLAGS}
_CLONED = 0x200


@pytest.fixture(scope="module")
def busy(guest: Guest) -> Iterator[Guest]:
    """The guest with routes of all kinds, in two namespaces, many of them."""
    netlink.install(guest)
    guest.put("/tmp/routes.sh", _SETUP.encode())
    guest.run("sh /tmp/routes.sh", timeout=60, check=False)
    first, second = (int(guest.get(f"/sys/class/net/dummy{n}/ifindex")) for n in (0, 1))
    hops = _hop(first, "10.1.2.7", 3) + _hop(second, "10.2.2.7", 10)
    hops6 = _hop(first, "fd00:1::7", 1) + _hop(second, "fd00:2::7", 2)
    requests = [
        _route("100.64.0.0", 10, attribute(_MULTIPATH, hops)),
        _route("2001:db8:a::", 48, attribute(_MULTIPATH, hops6)),
        # IPv4 by way of an IPv6 gateway, and a gateway that is not on the link.
        _route("100.80.0.0", 16, number(_OIF, first), attribute(_VIA, b"\n\0" + _raw("fd00:1::5"))),
        _route(
            "100.81.0.0", 16, number(_OIF, first), attribute(_GATEWAY, _raw("9.9.9.9")), flags=4
        ),
        _route("100.82.0.0", 16, number(_OIF, first), tos=8, protocol=186),
        _route(
            "2001:db8:b::", 48, number(_OIF, first), attribute(_SRC, _raw("fd00:9::")), source=32
        ),
        _object(1, AF_INET, number(_NHA_OIF, first), attribute(_NHA_GATEWAY, _raw("10.1.2.20"))),
        _object(2, AF_INET, number(_NHA_OIF, second), attribute(_NHA_GATEWAY, _raw("10.2.2.20"))),
        _object(3, AF_INET6, number(_NHA_OIF, first), attribute(_NHA_GATEWAY, _raw("fd00:1::20"))),
        _object(10, 0, attribute(_GROUP, struct.pack("<IBBHIBBH", 1, 4, 0, 0, 2, 0, 0, 0))),
        _object(11, 0, attribute(_GROUP, struct.pack("<IBBH", 3, 1, 0, 0))),
        _route("100.96.0.0", 16, number(_NH_ID, 1)),
        _route("100.97.0.0", 16, number(_NH_ID, 10)),
        _route("2001:db8:c::", 48, number(_NH_ID, 3)),
        _route("2001:db8:d::", 48, number(_NH_ID, 11)),
    ]
    for count in range(MANY):
        requests.append(_route(f"11.{count >> 8}.{count & 255}.0", 24, number(_OIF, second)))
        requests.append(_route(f"2001:db9:{count:x}::", 48, number(_OIF, second)))
    netlink.ask(guest, requests)
    yield guest
    deleted = [request(_DELETE_HOP, bytes(8), number(_ID, n)) for n in (10, 11, 1, 2, 3)]
    netlink.ask(guest, deleted)
    guest.run("ip rule del table 200; kill $(cat /tmp/other); for n in 0 1; do "
              "ip link set dummy$n down; ip addr flush dev dummy$n; done; "
              "ip route flush table 200; ip route flush table main", check=False)  # fmt: skip


def _raw(address: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


def _hop(oif: int, gateway: str, weight: int) -> bytes:
    via = attribute(_GATEWAY, _raw(gateway))
    return struct.pack("<HBBi", 8 + len(via), 0, weight - 1, oif) + via


def _object(number_: int, family: int, *attributes: bytes) -> bytes:
    body = struct.pack("<BBBBI", family, 0, 4, 0, 0)
    return request(_NEW_HOP, body, number(_ID, number_), *attributes, flags=ACK | CREATE)


def _route(
    destination: str, bits: int, *attributes: bytes, tos: int = 0, protocol: int = 4,
    source: int = 0, flags: int = 0,
) -> bytes:  # fmt: skip
    family = AF_INET6 if ":" in destination else AF_INET
    body = struct.pack("<BBBBBBBBI", family, bits, source, tos, 254, protocol, 0, 1, flags)
    content = attribute(_DST, _raw(destination))
    return request(_NEW, body, content, *attributes, flags=ACK | CREATE)


def test_routes(linux: LinuxGuest, busy: Guest) -> None:
    before = truth(busy)
    ours = linux.routes()
    after = truth(busy)
    assert linux.take_problems() == []
    namespaces = {key[0] for key in before}
    assert len(namespaces) == 2
    mine = Counter(as_netlink(row) for row in ours if row.net_namespace in namespaces)
    missing, invented = list((before & after) - mine), list(mine - (before | after))
    assert (missing[:5], invented[:5]) == ([], [])
    assert sum(mine.values()) > 2 * MANY


@pytest.mark.usefixtures("busy")
def test_every_kind_was_there(linux: LinuxGuest) -> None:
    """So that the comparison above does compare something."""
    rows = linux.routes()
    assert {row.type for row in rows} >= {
        "unicast", "local", "broadcast", "multicast", "blackhole", "unreachable", "prohibit",
        "throw",
    }  # fmt: skip
    assert {row.table for row in rows} == {"main", "local", "100", "200", "300"}
    assert {row.scope for row in rows} >= {"global", "link", "host"}
    assert {row.weight for row in rows} >= {None, 1, 2, 3, 5, 10}
    assert {row.nexthop for row in rows} == {None, 1, 3, 10, 11}
    assert {row.mtu for row in rows} == {None, 1300, 1400}
    assert "fd00:9::/32" in {row.source_prefix for row in rows}
    assert ("onlink",) in {row.flags for row in rows}
    assert {row.protocol for row in rows} >= {"kernel", "boot", "static", "bgp"}
    assert ("inet", "fd00:1::5") in {(row.family, row.gateway) for row in rows}


def test_routes_of_proc(linux: LinuxGuest, busy: Guest) -> None:
    """/proc/net/route and /proc/net/ipv6_route, in which other code of the kernel speaks."""
    here = linux.routes()[0].net_namespace
    rows = [row for row in linux.routes() if row.net_namespace == here]
    ours = {
        # Of several next hops it has one.
        (b"" if row.weight else row.interface or b"*", row.destination, row.netmask, row.metric)
        for row in rows
        if row.family == "inet" and row.table == "main" and row.type not in ("broadcast", "local")
    }
    several = {row.destination for row in rows if row.weight}
    lines = [line.split() for line in busy.get("/proc/net/route").splitlines()[1:]]
    assert ours == {
        (b"" if to in several else w[0], to, int(w[7], 16).bit_count(), int(w[6]))
        for w in lines
        for to in [_reversed(w[1])]
    }
    lines = [line.split() for line in busy.get("/proc/net/ipv6_route").splitlines()]
    six = {(row.destination, row.netmask, row.metric) for row in rows if row.family == "inet6"}
    assert six == {
        (inet_ntop(AF_INET6, bytes.fromhex(w[0].decode())), int(w[1], 16), int(w[5], 16))
        for w in lines
        if int(w[5], 16) != 0xFFFF_FFFF
    }


def _reversed(word: bytes) -> str:
    return str(ip_address(bytes.fromhex(word.decode())[::-1]))


def as_netlink(row: Route) -> tuple[Any, ...]:
    """A row as :func:`truth` has it."""
    return (
        row.net_namespace, row.family, row.table, row.destination, row.netmask, row.gateway,
        row.interface, row.source, row.metric, row.type, row.protocol, row.scope,
        frozenset(row.flags), row.mtu, row.weight, row.tos, row.source_prefix, row.nexthop,
    )  # fmt: skip


def truth(guest: Guest) -> Counter[tuple[Any, ...]]:
    """Every next hop of every route, by RTM_GETROUTE."""
    found: Counter[tuple[Any, ...]] = Counter()
    for pid in ("1", guest.get("/tmp/other").decode().strip()):
        namespace = int(guest.run(f"readlink /proc/{pid}/ns/net").strip()[5:-1])
        names = netlink.names(guest, pid)
        for family in (AF_INET, AF_INET6):
            asked = request(_GET, struct.pack("<B11x", family), flags=DUMP)
            for message in netlink.ask(guest, [asked], pid=int(pid)):
                for key in _hops(message.body, names):
                    found[(namespace, *key)] += 1
    return found


def _hops(body: bytes, names: dict[int, bytes]) -> Iterator[tuple[Any, ...]]:
    family, bits, from_bits, tos, _, protocol, scope, kind, flags = struct.unpack_from(
        "<BBBBBBBBI", body
    )
    if flags & _CLONED:
        return
    got = netlink.attributes(body[12:])
    zero = bytes(4 if family == AF_INET else 16)
    table = _u32(got.get(_TABLE))
    metrics = netlink.attributes(got.get(_METRICS, b""))
    prefix = None
    if from_bits:
        prefix = str(ip_network((got[_SRC], from_bits)))
    for oif, via, hop_flags, weight in _each_hop(got, flags):
        yield (
            "inet" if family == AF_INET else "inet6",
            source._TABLES.get(table, str(table)),
            inet_ntop(family, got.get(_DST, zero)),
            bits,
            via,
            names.get(oif),
            inet_ntop(family, got[_PREFSRC]) if _PREFSRC in got else None,
            _u32(got.get(_PRIORITY)),
            source._TYPES[kind],
            source._PROTOCOLS[protocol],
            source._SCOPES[scope],
            frozenset(name for name, bit in _FLAGS.items() if hop_flags & bit),
            _u32(metrics.get(2)) or None,
            weight,
            tos or None,
            prefix,
            _u32(got.get(_NH_ID)) or None,
        )


def _each_hop(
    got: dict[int, bytes], flags: int
) -> Iterator[tuple[int, str | None, int, int | None]]:
    several = got.get(_MULTIPATH, b"")
    if not several:
        yield _u32(got.get(_OIF)), _gateway(got), flags, None
    while several:
        length, hop_flags, hops, oif = struct.unpack_from("<HBBi", several)
        yield oif, _gateway(netlink.attributes(several[8:length])), hop_flags, hops + 1
        several = several[(length + 3) & ~3 :]


def _gateway(got: dict[int, bytes]) -> str | None:
    raw = got.get(_GATEWAY) or got.get(_VIA, b"")[2:]
    return inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw) if raw else None


def _u32(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "little")
