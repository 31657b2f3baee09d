"""``interfaces`` against ``ip`` and /sys/class/net of every namespace, on every guest."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from socket import inet_ntop
from typing import Any, NamedTuple

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Interface
from virtintrospect.session import open_session

from . import netlink
from .lab.guest import Guest
from .lab.kernels import kernel

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

ODD = b"odd\x1b[31m\xff'"
_COUNTERS = (
    "rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "rx_errors", "tx_errors", "rx_dropped",
    "tx_dropped",
)  # fmt: skip
#: RTM_GETLINK, RTM_GETADDR.
_GET_LINK, _GET_ADDRESS = 18, 22
_SCOPES = {0: "global", 253: "link", 254: "host"}
#: What busybox's ip shows as a number.
_HIDDEN = {"ALLMULTI": 0x200, "PROMISC": 0x100, "MASTER": 0x400, "SLAVE": 0x800, "ECHO": 0x40000}

_SETUP = """
echo 0 > /proc/sys/net/ipv6/conf/default/accept_ra
insmod /tmp/veth.ko
for module in failover net_failover virtio_net; do insmod /tmp/$module.ko; done
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up; ip addr add 127.9.9.9/32 dev lo
ip addr add 10.1.2.3/24 dev dummy0; ip addr add 10.1.2.4/32 dev dummy0
ip addr add 192.0.2.1/25 broadcast + dev dummy0 label dummy0:7
ip -6 addr add fd00:1::1/64 dev dummy0
ip link set dummy0 mtu 1400 up; ip link set dummy0 promisc on
ping -c 2 -W 1 10.1.2.77; ping -c 2 127.0.0.1; ping6 -c 1 ::1
brctl addbr br0; brctl addif br0 dummy1; ip link set dummy1 up; ip link set br0 up
ip addr add 10.5.0.1 peer 10.5.0.2/32 dev br0; ip -6 addr add fe80::1:2/10 dev br0
ping -c 1 -W 1 10.5.0.2
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ping -c 3 -s 1000 -W 2 10.0.2.2
brctl addbr %s
unshare -n sleep 100000 >/dev/null 2>&1 & first=$!
unshare -n sleep 100000 >/dev/null 2>&1 & second=$!
here=$(readlink /proc/1/ns/net)
for pid in $first $second; do
    while [ "$(readlink /proc/$pid/ns/net)" = "$here" ]; do usleep 50000; done; done
ip link add type veth; ip link set veth1 netns $first; ip link set veth0 up
nsenter -t $first -n ip link set veth1 up; nsenter -t $first -n ip addr add 10.7.0.1/16 dev veth1
nsenter -t $first -n ip link set lo up
ip addr add 10.7.0.2/16 dev veth0; ping -c 3 -s 500 -W 1 10.7.0.1
nsenter -t $first -n ping -c 1 127.0.0.1
nsenter -t $first -n brctl addbr br0
echo 1 $first $second > /tmp/namespaces
"""

_ASK = """
cd /tmp; for pid in $(cat /tmp/namespaces); do
readlink /proc/$pid/ns/net
nsenter -t $pid -n unshare -m sh -c '
mount -t sysfs lab /mnt; cd /mnt/class/net
for name in *; do [ -d "$name" ] && echo "sys $name $(cat "$name/address") $(cat "$name/mtu") \
$(cat "$name/operstate") $(cd "$name/statistics"; cat rx_bytes tx_bytes rx_packets tx_packets \\
rx_errors tx_errors rx_dropped tx_dropped)" | \
tr "\\n" " " && echo; done
ip -o link | sed "s/^/link /"; ip -o addr | sed "s/^/addr /"'
done
"""


class Truth(NamedTuple):
    """One interface by the guest's own word."""

    mac: str
    mtu: int
    state: str
    counters: tuple[int, ...]
    flags: set[str]
    #: (family, address, prefix)
    addresses: set[tuple[str, str, int]]


@pytest.fixture(scope="module")
def busy(guest: Guest) -> Iterator[Guest]:
    """The guest with interfaces of many kinds, in three namespaces."""
    modules = kernel(guest.config.kernel)
    for module in modules.load_order(("veth", "virtio_net")):
        guest.put(f"/tmp/{module}.ko", modules.modules[module][0].read_bytes())
    name = ODD.decode("latin-1").replace("'", "'\\''")
    netlink.install(guest)
    guest.put("/tmp/setup.sh", (_SETUP % f"'{name}'").encode("latin-1"))
    guest.run("sh /tmp/setup.sh", timeout=150, check=False)
    yield guest
    guest.run("kill $(cut -d' ' -f2- /tmp/namespaces); ip link del veth0", check=False)
    guest.run("ip addr flush dev eth0; rmmod virtio_net", check=False)
    guest.run("ip link set br0 down; brctl delbr br0; ip addr flush dev dummy0", check=False)


@pytest.fixture
def linux(guest: Guest) -> Iterator[LinuxGuest]:
    with open_session(guest.name) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        yield linux


def test_interfaces(linux: LinuxGuest, busy: Guest) -> None:
    before = truth(busy)
    ours = linux.interfaces()
    after = truth(busy)
    assert linux.take_problems() == []
    assert len({namespace for namespace, _ in before}) == 3
    names = {name for _, name in before}
    assert {b"lo", b"dummy0", b"dummy1", b"br0", b"veth0", b"veth1", ODD} | busy.cards <= names
    known = {namespace for namespace, _ in before}
    mine: dict[tuple[int, bytes], list[Interface]] = {}
    for row in ours:
        if row.net_namespace in known:
            mine.setdefault((row.net_namespace, row.interface), []).append(row)
    assert mine.keys() == before.keys() == after.keys()
    for key, rows in mine.items():
        compare(rows, before[key], after[key])


def compare(rows: list[Interface], before: Truth, after: Truth) -> None:
    for row in rows:
        assert (row.mac, row.mtu, row.state) == (before.mac, before.mtu, before.state), row
        assert set(row.flags) == before.flags, row
        counted = [getattr(row, name) for name in _COUNTERS]
        for first, count, last in zip(before.counters, counted, after.counters, strict=True):
            assert count is None or first <= count <= last, row
    addresses = [(r.family, r.address, r.prefix) for r in rows if r.address is not None]
    assert len(addresses) == len(set(addresses)) == len(before.addresses)
    assert set(addresses) == before.addresses
    assert len(rows) == max(1, len(addresses))


def test_what_netlink_says(linux: LinuxGuest, busy: Guest) -> None:
    """Kinds, masters, and what belongs to an address, by RTM_GETLINK and RTM_GETADDR."""
    for pid in busy.get("/tmp/namespaces").split():
        namespace = int(busy.run(f"readlink /proc/{int(pid)}/ns/net").strip()[5:-1])
        rows = [row for row in linux.interfaces() if row.net_namespace == namespace]
        links, addresses = by_netlink(busy, int(pid))
        names = {row.index: row.interface for row in rows}
        assert {row.index or 0: (row.interface, row.kind, row.master) for row in rows} == {
            index: (name, kind, names.get(master)) for index, (name, kind, master) in links.items()
        }
        assert {
            (row.index, row.address, row.prefix, row.scope, row.broadcast, row.peer)
            for row in rows
            if row.address
        } == addresses
    rows = linux.interfaces()
    assert {row.kind for row in rows} >= {None, b"bridge", b"dummy", b"veth"}
    assert b"br0" in {row.master for row in rows if row.interface == b"dummy1"}
    assert {row.scope for row in rows} >= {"global", "link", "host"}
    assert "10.5.0.2" in {row.peer for row in rows}


def by_netlink(
    guest: Guest, pid: int
) -> tuple[dict[int, tuple[bytes, bytes | None, int]], set[tuple[Any, ...]]]:
    """Links by index: name, kind, index of the master; and addresses."""
    links = {}
    ask = netlink.request(_GET_LINK, bytes(16), flags=netlink.DUMP)
    for message in netlink.ask(guest, [ask], pid=pid):
        index = struct.unpack_from("<i", message.body, 4)[0]
        got = netlink.attributes(message.body[16:])
        kind = netlink.attributes(got.get(18, b"")).get(1)  # IFLA_LINKINFO, IFLA_INFO_KIND
        master = int.from_bytes(got.get(10, b""), "little")  # IFLA_MASTER
        links[index] = got[3].rstrip(b"\0"), kind and kind.rstrip(b"\0"), master
    addresses = set()
    ask = netlink.request(_GET_ADDRESS, bytes(8), flags=netlink.DUMP)
    for message in netlink.ask(guest, [ask], pid=pid):
        family, prefix, _, scope, index = struct.unpack_from("<BBBBI", message.body)
        said = {
            kind: inet_ntop(family, data)
            for kind, data in netlink.attributes(message.body[8:]).items()
            if kind in (1, 2, 4)  # IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST
        }
        local = said.get(2, said[1])
        peer = said[1] if said[1] != local else None
        addresses.add((index, local, prefix, _SCOPES[scope], said.get(4), peer))
    return links, addresses


def test_counters_are_known_where_the_kernel_itself_counts(linux: LinuxGuest, busy: Guest) -> None:
    rows = {row.interface: row for row in linux.interfaces() if row.net_namespace > 0}
    own = {b"lo", b"dummy0"}
    if busy.config.kernel != "5.10":  # there a bridge counts in a function of its own
        own |= {b"br0"}
    if busy.config.kernel != "5.10" and busy.config.arch != "i686":  # these have no module's types
        own |= {b"veth0"} | busy.cards
    for name in own:
        assert all(getattr(rows[name], counter) is not None for counter in _COUNTERS), name
    sent = [row.tx_packets for row in linux.interfaces() if row.interface == b"dummy0"]
    assert sent[0]
    for card in busy.cards:
        assert rows[card].driver == b"virtio_net"
        assert card not in own or (rows[card].rx_packets or 0) >= 3
        assert card not in own or (rows[card].rx_bytes or 0) > 3000
    if b"veth0" in own:
        assert (rows[b"veth0"].rx_packets or 0) >= 3
        assert (rows[b"veth0"].tx_bytes or 0) > 1500


def truth(guest: Guest) -> dict[tuple[int, bytes], Truth]:
    found: dict[tuple[int, bytes], Truth] = {}
    namespace = 0
    for line in guest.run(_ASK).splitlines():
        if line.startswith(b"net:["):
            namespace = int(line[5:-1])
            continue
        kind, *words = line.split()
        if kind == b"sys":
            if len(words) < 4 + len(_COUNTERS):
                continue  # it went while the guest read it
            name, mac, mtu, state, *counters = words
            found[namespace, name] = Truth(
                mac.decode(), int(mtu), state.decode(), tuple(map(int, counters)), set(), set()
            )
        elif kind == b"link":
            name = words[1].removesuffix(b":").partition(b"@")[0]
            if (namespace, name) not in found:
                continue
            found[namespace, name].flags.update(_flags(words[2].decode().strip("<>").split(",")))
        elif kind == b"addr" and words[2] in (b"inet", b"inet6"):
            plain, _, prefix = words[3].partition(b"/")
            prefix = words[5].partition(b"/")[2] if words[4] == b"peer" else prefix
            address = (words[2].decode(), plain.decode(), int(prefix or 0))
            if one := found.get((namespace, words[1].removesuffix(b":"))):
                one.addresses.add(address)
    return found


def _flags(words: list[str]) -> Iterator[str]:
    for word in words:
        match = re.fullmatch(r"([A-Z_-]*)([0-9a-f]*)", word)
        assert match is not None, word
        if match[1] not in ("M-DOWN", ""):  # busybox's own word for a peer that is down
            yield match[1]
        yield from (name for name, bit in _HIDDEN.items() if int(match[2] or "0", 16) & bit)
