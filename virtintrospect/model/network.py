"""Network interfaces and sockets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interface:
    """One row of ``interfaces``: an address of a network interface.

    An interface with several addresses has several rows, one without any has one.
    """

    interface: bytes
    mac: str | None
    #: Bytes.
    mtu: int | None
    #: RFC 2863 operational state, as /sys/class/net/NAME/operstate has it.
    state: str | None
    #: As ``ip link`` has them, NO-CARRIER included.
    flags: tuple[str, ...]
    address: str | None
    #: Bits of the address that are the network.
    prefix: int | None
    #: ``inet`` or ``inet6``.
    family: str | None
    #: Where the address is valid: ``global``, ``link``, ``host``, ``site``.
    scope: str | None
    #: IPv4 only.
    broadcast: str | None
    #: The other end of a point-to-point link.
    peer: str | None
    index: int | None
    #: What kind of virtual interface it is: ``bridge``, ``veth``, ``vxlan``, …
    kind: bytes | None
    #: Driver of the device behind it: ``virtio_net``, …
    driver: bytes | None
    #: The bridge or bond that it belongs to.
    master: bytes | None
    #: Counters of the whole interface, where the kernel keeps them where all can see them.
    rx_bytes: int | None
    tx_bytes: int | None
    rx_packets: int | None
    tx_packets: int | None
    rx_errors: int | None
    tx_errors: int | None
    rx_dropped: int | None
    tx_dropped: int | None
    #: Inode number of the network namespace, as /proc/PID/ns/net has it.
    net_namespace: int


@dataclass(frozen=True, slots=True)
class Socket:
    """One row of ``sockets``: a descriptor of a process, or a socket that nobody has open."""

    pid: int | None
    fd: int | None
    #: Inode number, as in ``socket:[…]`` of /proc/PID/fd.
    socket: int | None
    #: ``inet``, ``inet6``, ``unix``, ``netlink``, ``packet``, …
    family: str
    #: ``tcp``, ``udp``, ``raw``, …; ``route``, ``generic``, … of netlink; else the socket's
    #: type: ``stream``, ``dgram``, ``seqpacket``, ``raw``.
    protocol: str | None
    #: An IP address; of a packet socket the interface.
    local_address: str | bytes | None
    #: Of a raw socket the IP protocol, of netlink the port id, of a packet socket the EtherType.
    local_port: int | None
    remote_address: str | None
    remote_port: int | None
    #: ``LISTEN``, ``ESTABLISHED``, ``TIME_WAIT``, …; ``UNCONNECTED`` for what has no connection.
    state: str | None
    #: Name of a UNIX socket; abstract names begin with ``@``.
    path: bytes | None
    #: As ``ss`` has it. TCP: bytes that nobody has read; of a listener, connections that nobody
    #: has accepted. UNIX: bytes that wait. Datagrams: bytes of memory that they take.
    recv_queue: int | None
    #: TCP: bytes that were not acknowledged; of a listener, how many connections may wait.
    #: Others: bytes of memory that what was sent still takes.
    send_queue: int | None
    #: Who made the socket, a user id of the initial user namespace.
    uid: int | None
    #: Inode number of the network namespace.
    net_namespace: int | None
    #: Virtual address of the ``struct sock``.
    address: int


@dataclass(frozen=True, slots=True)
class Route:
    """One row of ``routes``: a way to a destination; a route with several next hops has several."""

    destination: str
    #: Bits of the destination that are the network.
    netmask: int
    #: Of either IP version; none where the destination is on the link itself.
    gateway: str | None
    interface: bytes | None
    #: The address that packets get as source, where the route says so.
    source: str | None
    metric: int
    #: ``unicast``, ``local``, ``broadcast``, ``blackhole``, ``unreachable``, …
    type: str
    #: ``main``, ``local``, ``default``, or a number.
    table: str
    #: Who made it: ``kernel``, ``boot``, ``static``, ``dhcp``, ``ra``, …
    protocol: str
    #: ``global``, ``link``, ``host``, …
    scope: str
    #: ``onlink``, ``dead``, ``linkdown``, …
    flags: tuple[str, ...]
    #: Bytes; only where the route itself sets it.
    mtu: int | None
    #: Of a route with several next hops this one's share.
    weight: int | None
    #: Type of service that packets must have, IPv4 only.
    tos: int | None
    #: Source prefix that packets must have, IPv6 only.
    source_prefix: str | None
    #: Id of the next hop object, where one is used.
    nexthop: int | None
    #: ``inet`` or ``inet6``.
    family: str
    #: Inode number of the network namespace.
    net_namespace: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One row of ``neighbours``: an address on the link, and who answers to it."""

    address: str
    #: Hardware address; none while nobody has answered.
    mac: str | None
    interface: bytes | None
    #: ``REACHABLE``, ``STALE``, ``PERMANENT``, ``FAILED``, …; none of a proxy.
    state: str | None
    permanent: bool | None
    #: ``router``, ``proxy``, ``extern_learn``, …
    flags: tuple[str, ...]
    #: ``inet`` (ARP) or ``inet6`` (neighbour discovery).
    family: str
    #: Inode number of the network namespace.
    net_namespace: int | None
