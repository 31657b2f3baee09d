"""Records: what the tables are made of. Frozen, flat, and independent of any guest OS.

``None`` means that a field is not known; output leaves such a field out. Strings that came
from the guest are ``bytes``: what they may contain is up to a stranger, and the one place that
makes them printable is the output.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """One row of ``info``: which kernel runs, and since when."""

    os: str
    release: bytes
    version: bytes
    machine: bytes
    hostname: bytes | None
    arguments: bytes | None
    #: Seconds since the epoch, UTC, by the guest's own clock.
    boot_time: int | None
    uptime_seconds: int | None
    #: CPUs that are online.
    cpus: int | None
    page_mode: str
    #: Virtual address of ``_text``.
    kernel_base: int
    #: Bytes that KASLR moved the kernel by, virtually.
    kaslr_slide: int | None
    build_id: bytes


@dataclass(frozen=True, slots=True)
class Process:
    """One row of ``ps``: a process, or with ``--threads`` one of its threads."""

    #: Thread-group id, in the initial PID namespace.
    pid: int
    tid: int
    parent: int | None
    name: bytes
    #: As /proc/PID/stat has it: R S D T t X Z P I.
    state: str
    uid: int | None
    gid: int | None
    euid: int | None
    egid: int | None
    threads: int | None
    nice: int
    #: As /proc/PID/stat has it: nice + 20, or below zero for real-time tasks.
    priority: int
    #: Seconds since the epoch, UTC.
    start_time: int | None
    #: Milliseconds of CPU time.
    user_time: int | None
    system_time: int | None
    #: Bytes.
    resident_size: int | None
    total_size: int | None
    path: bytes | None
    #: Arguments, separated by single spaces.
    cmdline: bytes | None
    cwd: bytes | None
    root: bytes | None
    cgroup_path: bytes | None
    kernel_thread: bool
    #: Virtual address of the task_struct.
    address: int
    #: 1.0 when a second look confirmed the row; lower when parts could not be read.
    confidence: float


@dataclass(frozen=True, slots=True)
class Module:
    """One row of ``modules``."""

    name: bytes
    #: Bytes of code and data.
    size: int
    used_by: tuple[bytes, ...]
    refcount: int
    status: str
    #: Virtual address where the module's code starts.
    address: int
    #: Taint letters, as /proc/modules has them: O out of tree, E unsigned, …
    taints: str


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One row of ``dmesg``."""

    #: Seconds since boot, by the guest's sched_clock.
    time: float
    level: str
    facility: str
    text: bytes
    sequence: int


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


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in guest memory that could not be made sense of; it cost a row or a field."""

    what: str
    address: int
