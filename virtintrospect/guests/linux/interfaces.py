"""Network interfaces and their addresses (include/linux/netdevice.h, net/ipv4, net/ipv6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.guests.linux import netstats
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.chains import Link, walk_chains
from virtintrospect.guests.linux.netns import namespaces
from virtintrospect.model import Interface

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: MAX_ADDR_LEN (include/linux/netdevice.h).
_MAX_ADDRESS = 32
_U32 = 0xFFFF_FFFF
#: RFC 2863 states (include/uapi/linux/if.h), spelt as net/core/net-sysfs.c does.
_STATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
_UNKNOWN, _DOWN, _UP = 0, 2, 6
#: Bits of ``net_device.state`` (enum netdev_state_t).
_START, _NOCARRIER, _DORMANT = 1 << 0, 1 << 2, 1 << 4
#: IFF_* (include/uapi/linux/if.h) in the order in which ip(8) names them.
_FLAGS = (
    (0x8, "LOOPBACK"), (0x2, "BROADCAST"), (0x10, "POINTOPOINT"), (0x1000, "MULTICAST"),
    (0x80, "NOARP"), (0x200, "ALLMULTI"), (0x100, "PROMISC"), (0x400, "MASTER"), (0x800, "SLAVE"),
    (0x4, "DEBUG"), (0x8000, "DYNAMIC"), (0x4000, "AUTOMEDIA"), (0x2000, "PORTSEL"),
    (0x20, "NOTRAILERS"), (0x1, "UP"), (0x10000, "LOWER_UP"), (0x20000, "DORMANT"),
    (0x40000, "ECHO"),
)  # fmt: skip
_IFF_UP, _IFF_RUNNING, _IFF_LOWER_UP, _IFF_DORMANT = 0x1, 0x40, 0x10000, 0x20000
#: IFF_PROMISC and IFF_ALLMULTI: what user space asked for is in ``gflags``.
_ASKED = 0x300

_MEMBERS = {
    "name": "name",
    "mtu": "mtu",
    "flags": "flags",
    "gflags": "gflags",
    "state": "state",
    "operstate": "operstate",
    "hardware": "dev_addr",
    "length": "addr_len",
    "in4": "ip_ptr",
    "first": "ip_ptr.ifa_list",
    "in6": "ip6_ptr",
    "index": "ifindex",
    "kind": "rtnl_link_ops.kind",
    "driver": "dev.parent.driver.name",
    "upper": "adj_list.upper.next",
}
#: Longest name of a kind or of a driver.
_NAME = 64
#: RT_SCOPE_* of IPv4, and IFA_HOST, IFA_LINK, IFA_SITE (include/net/if_inet6.h).
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_SCOPES6 = {0x10: "host", 0x20: "link", 0x40: "site"}


class _Address(NamedTuple):
    family: str
    address: str
    prefix: int
    scope: str
    broadcast: str | None
    peer: str | None


def interfaces(guest: LinuxGuest, *, counted: bool = True) -> list[Interface]:
    """The rows of ``interfaces``: namespace by namespace, in the order of ``ip link``.

    :param counted: with their counters, which cost more than all the rest.
    """
    budget = Budget()
    rows = _devices(guest, budget)
    addresses: list[list[_Address]] = [[] for _ in rows]
    for index, address in (*_inet(guest, rows, budget), *_inet6(guest, rows, budget)):
        addresses[index].append(address)
    macs = _hardware(guest, rows)
    masters = _masters(guest, rows)
    for name in ("kind", "driver"):
        texts = guest.kernel.strings([row[name] or 0 for row in rows], _NAME)
        for row, text in zip(rows, texts, strict=True):
            row[name] = text if row[name] else None
    none = [netstats.Counters()] * len(rows)
    counters = netstats.counters(guest, rows, budget) if counted else none
    guest.note_all([budget.problem])
    nothing: list[_Address | None] = [None]
    return [
        _record(row, mac, master, counted, address)
        for row, mac, master, counted, found in zip(
            rows, macs, masters, counters, addresses, strict=True
        )
        for address in found or nothing
    ]


def device_links(guest: LinuxGuest, budget: Budget) -> list[tuple[int, int, int]]:
    """Every device of every namespace (``net.dev_base_head``): device, its net, that's inode."""
    nets = namespaces(guest, budget)
    head_at = guest.types.offsetof("net", "dev_base_head")
    node_at = guest.types.offsetof("net_device", "dev_list")
    layout = guest.layout("net", {"first": "dev_base_head.next"}, text=())
    starts = layout.lists(guest.kernel, list(nets), [])["first"]
    links = walk_chains(guest, starts, budget, ends=[net + head_at for net in nets])
    links.sort(key=lambda link: link.chain)  # stable: a namespace's devices stay in their order
    found = list(nets.items())
    return [(link.node - node_at, *found[link.chain]) for link in links if link.node >= node_at]


class Device(NamedTuple):
    """What other tables need of an interface."""

    name: bytes
    #: ``ifindex``.
    number: int
    #: Bytes of its hardware addresses.
    length: int
    #: Address of its ``struct net``, and the inode number of that.
    net: int
    namespace: int


def devices(guest: LinuxGuest, budget: Budget) -> dict[int, Device]:
    """Each ``net_device`` of every namespace, by its address."""
    links = device_links(guest, budget)
    members = {"name": "name", "index": "ifindex", "length": "addr_len"}
    layout = guest.layout("net_device", members, text=("name",))
    columns = layout.lists(guest.kernel, [device for device, _, _ in links], [])
    return {
        device: Device(name.split(b"\0", 1)[0], index, length, net, inode)
        for (device, net, inode), name, index, length in zip(links, *columns.values(), strict=True)
        if name is not None
    }


def device_names(guest: LinuxGuest, budget: Budget) -> dict[tuple[int, int], bytes]:
    """Name of each interface by the address of its ``struct net`` and its index there."""
    found = devices(guest, budget).values()
    return {(device.net, device.number): device.name for device in found}


def _devices(guest: LinuxGuest, budget: Budget) -> list[Row]:
    """Chosen members of every device."""
    links = device_links(guest, budget)
    layout = guest.layout("net_device", _MEMBERS | netstats.MEMBERS, text=("name",))
    columns = layout.lists(guest.kernel, [device for device, _, _ in links], [])
    rows = []
    for (device, _, inode), values in zip(links, zip(*columns.values(), strict=True), strict=True):
        row = dict(zip(columns, values, strict=True)) | {"namespace": inode, "device": device}
        if row["name"] is None or row["flags"] is None or row["state"] is None:
            guest.note("unreadable interface", device)
            continue
        rows.append(row)
    return rows


def _inet(guest: LinuxGuest, rows: list[Row], budget: Budget) -> list[tuple[int, _Address]]:
    """IPv4 addresses (``in_device.ifa_list``): which device has which."""
    from socket import AF_INET, inet_ntop

    def text(number: int) -> str:
        return inet_ntop(AF_INET, (number & _U32).to_bytes(4, "little"))

    next_at = guest.types.offsetof("in_ifaddr", "ifa_next")
    links = walk_chains(guest, [row["first"] for row in rows], budget, next_at=next_at)
    members = {
        "local": "ifa_local",
        "prefix": "ifa_prefixlen",
        "scope": "ifa_scope",
        "broadcast": "ifa_broadcast",
        "peer": "ifa_address",
    }
    return [
        (
            link.chain,
            _Address(
                "inet",
                text(row["local"]),
                row["prefix"],
                _SCOPES.get(row["scope"], str(row["scope"])),
                text(row["broadcast"]) if row["broadcast"] else None,
                text(row["peer"]) if row["peer"] != row["local"] else None,
            ),
        )
        for link, row in _read(guest, "in_ifaddr", members, links, 0)
    ]


def _inet6(guest: LinuxGuest, rows: list[Row], budget: Budget) -> list[tuple[int, _Address]]:
    """IPv6 addresses (``inet6_dev.addr_list``)."""
    from socket import AF_INET6, inet_ntop

    if "inet6_dev" not in guest.types:
        return []  # built without IPv6
    head_at = guest.types.offsetof("inet6_dev", "addr_list")
    node_at = guest.types.offsetof("inet6_ifaddr", "if_list")
    devices = [row["in6"] for row in rows]
    layout = guest.layout("inet6_dev", {"first": "addr_list.next"}, text=())
    there = [device for device in devices if device]
    columns = layout.lists(guest.kernel, there, [])["first"]
    starts = dict(zip(there, columns, strict=True))
    links = walk_chains(
        guest,
        [starts.get(device) for device in devices],
        budget,
        ends=[(device or 0) + head_at for device in devices],
    )
    members = {
        "local": "addr.in6_u.u6_addr8",
        "prefix": "prefix_len",
        "scope": "scope",
        "peer": "peer_addr.in6_u.u6_addr8",
    }
    found = _read(guest, "inet6_ifaddr", members, links, node_at, text=("local", "peer"))
    return [
        (
            link.chain,
            _Address(
                "inet6",
                inet_ntop(AF_INET6, row["local"]),
                row["prefix"],
                _SCOPES6.get(row["scope"] & 0xF0, "global"),
                None,
                inet_ntop(AF_INET6, row["peer"]) if any(row["peer"]) else None,
            ),
        )
        for link, row in found
        if len(row["local"]) == len(row["peer"]) == 16
    ]


def _read(
    guest: LinuxGuest,
    name: str,
    members: dict[str, str],
    links: list[Link],
    node_at: int,
    text: tuple[str, ...] = (),
) -> list[tuple[Link, Row]]:
    """What each ``struct`` says; those that cannot be read are noted."""
    columns = guest.layout(name, members, text=text).lists(
        guest.kernel, [link.node - node_at for link in links], []
    )
    found = []
    for link, values in zip(links, zip(*columns.values(), strict=True), strict=True):
        if None in values:
            guest.note("unreadable address of an interface", link.node)
        else:
            found.append((link, dict(zip(columns, values, strict=True))))
    return found


def _masters(guest: LinuxGuest, rows: list[Row]) -> list[bytes | None]:
    """The bridge or bond that an interface belongs to: the first of the devices above it."""
    at = guest.types.offsetof("netdev_adjacent", "list")
    uppers = [(row["upper"] or 0) - at for row in rows]
    members = {"is": "master", "name": "dev.name"}
    layout = guest.layout("netdev_adjacent", members, text=("name",))
    # An empty list leads back into the device itself.
    inside = guest.types.offsetof("net_device", "adj_list.upper")
    lone = [row["upper"] == row["device"] + inside for row in rows]
    there = [upper for upper, alone in zip(uppers, lone, strict=True) if not alone and upper > 0]
    columns = layout.lists(guest.kernel, there, [])
    names = {
        upper: name.split(b"\0", 1)[0]
        for upper, master, name in zip(there, columns["is"], columns["name"], strict=True)
        if master and name is not None
    }
    return [None if alone else names.get(upper) for upper, alone in zip(uppers, lone, strict=True)]


def _hardware(guest: LinuxGuest, rows: list[Row]) -> list[str | None]:
    """Hardware addresses, as /sys/class/net/NAME/address has them."""
    pointers = [row["hardware"] or 0 for row in rows]
    faults: list[int] = []
    data = guest.kernel.gather(pointers, _MAX_ADDRESS, faults)
    bad = set(faults)
    found: list[str | None] = []
    for index, row in enumerate(rows):
        start, length = index * _MAX_ADDRESS, row["length"] or 0
        whole = index not in bad and 0 < length <= _MAX_ADDRESS
        found.append(data[start : start + length].hex(":") if whole else None)
    return found


def _record(
    row: Row,
    mac: str | None,
    master: bytes | None,
    counted: netstats.Counters,
    address: _Address | None,
) -> Interface:
    running = bool(row["state"] & _START)
    # What is not running is down, whatever its operational state was (operstate_show()).
    state = row["operstate"] if running else _DOWN
    return Interface(
        interface=row["name"].split(b"\0", 1)[0],
        mac=mac,
        mtu=row["mtu"],
        state=_STATES[state] if state in range(len(_STATES)) else None,
        flags=_flags(row, running),
        address=address.address if address else None,
        prefix=address.prefix if address else None,
        family=address.family if address else None,
        scope=address.scope if address else None,
        broadcast=address.broadcast if address else None,
        peer=address.peer if address else None,
        index=row["index"],
        kind=row["kind"],
        driver=row["driver"],
        master=master,
        **counted._asdict(),
        net_namespace=row["namespace"],
    )


def _flags(row: Row, running: bool) -> tuple[str, ...]:
    """``dev_get_flags()`` of net/core/dev.c, in the words of ``ip link``."""
    flags = row["flags"] & ~(_ASKED | _IFF_RUNNING | _IFF_LOWER_UP | _IFF_DORMANT)
    flags |= (row["gflags"] or 0) & _ASKED
    if running:
        flags |= _IFF_RUNNING if row["operstate"] in (_UP, _UNKNOWN) else 0
        flags |= 0 if row["state"] & _NOCARRIER else _IFF_LOWER_UP
        flags |= _IFF_DORMANT if row["state"] & _DORMANT else 0
    silent = flags & _IFF_UP and not flags & _IFF_RUNNING
    names = tuple(name for bit, name in _FLAGS if flags & bit)
    return ("NO-CARRIER", *names) if silent else names
