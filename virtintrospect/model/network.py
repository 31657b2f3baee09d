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
    #: Counters of the whole interface, where the kernel keeps them where all can see them.
    rx_bytes: int | None
    tx_bytes: int | None
    rx_packets: int | None
    tx_packets: int | None
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
    #: Inode number of the network namespace.
    net_namespace: int | None
    #: Virtual address of the ``struct sock``.
    address: int
