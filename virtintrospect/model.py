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
class MemoryArea:
    """One row of ``maps``: a mapping of a process's memory, as /proc/PID/maps has it."""

    pid: int
    #: First virtual address, and the one behind the last.
    start: int
    end: int
    #: ``r``, ``w``, ``x`` or ``-`` each; then ``s`` for shared, ``p`` for private.
    permissions: str
    #: Bytes into the file.
    offset: int
    #: ``major:minor`` of the file system, two hexadecimal digits or more; ``00:00`` for no file.
    device: str | None
    #: 0 for no file.
    inode: int | None
    #: Of the file, or [heap], [stack], [vdso], [anon:…]; ``None`` for unnamed memory.
    path: bytes | None


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One row of ``files``: an open file descriptor."""

    pid: int
    fd: int
    #: As ``readlink /proc/PID/fd/FD`` gives it: a path, ``pipe:[1234]``, ``anon_inode:[eventfd]``.
    path: bytes | None
    #: regular, directory, character, block, fifo, socket, symlink, memfd, eventpoll, …
    type: str | None
    #: O_RDONLY, O_APPEND … (include/uapi/asm-generic/fcntl.h), as /proc/PID/fdinfo/FD has them.
    flags: int | None
    #: Bytes: the file position.
    offset: int
    inode: int | None
    #: ``major:minor`` of the file system, as in /proc/PID/maps.
    device: str | None


@dataclass(frozen=True, slots=True)
class Mount:
    """One row of ``mounts``: a mounted file system in a mount namespace."""

    device: bytes | None
    path: bytes | None
    type: bytes | None
    #: As in /proc/PID/mounts: ``rw,nosuid,relatime``; options of the file system's own left out.
    flags: str
    #: Inode number of the mount namespace, as in ``readlink /proc/PID/ns/mnt``.
    namespace: int | None


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """One row of ``env``."""

    name: bytes
    #: ``None`` where there is no ``=``.
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in guest memory that could not be made sense of; it cost a row or a field."""

    what: str
    address: int


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """The record of ``memory``: /proc/meminfo in bytes, ``huge_pages_…`` in huge pages."""

    memory_total: int | None
    memory_free: int | None
    memory_available: int | None
    buffers: int | None
    cached: int | None
    swap_cached: int | None
    active: int | None
    inactive: int | None
    active_anon: int | None
    inactive_anon: int | None
    active_file: int | None
    inactive_file: int | None
    unevictable: int | None
    mlocked: int | None
    swap_total: int | None
    swap_free: int | None
    zswap: int | None
    zswapped: int | None
    dirty: int | None
    writeback: int | None
    anon_pages: int | None
    mapped: int | None
    shmem: int | None
    k_reclaimable: int | None
    slab: int | None
    s_reclaimable: int | None
    s_unreclaim: int | None
    kernel_stack: int | None
    page_tables: int | None
    sec_page_tables: int | None
    nfs_unstable: int | None
    bounce: int | None
    writeback_tmp: int | None
    commit_limit: int | None
    committed_as: int | None
    vmalloc_total: int | None
    vmalloc_used: int | None
    vmalloc_chunk: int | None
    percpu: int | None
    early_memtest_bad: int | None
    hardware_corrupted: int | None
    anon_huge_pages: int | None
    shmem_huge_pages: int | None
    shmem_pmd_mapped: int | None
    file_huge_pages: int | None
    file_pmd_mapped: int | None
    cma_total: int | None
    cma_free: int | None
    unaccepted: int | None
    balloon: int | None
    gpu_active: int | None
    gpu_reclaim: int | None
    huge_pages_total: int | None
    huge_pages_free: int | None
    huge_pages_rsvd: int | None
    huge_pages_surp: int | None
    hugepagesize: int | None
    hugetlb: int | None
    direct_map_4k: int | None
    direct_map_2m: int | None
    direct_map_1g: int | None


@dataclass(frozen=True, slots=True)
class Pressure:
    """One row of ``pressure``: pressure stall information (PSI)."""

    #: cpu, memory, io or irq.
    resource: str
    #: some: at least one task waited; full: all tasks did.
    kind: str
    #: Percent of the last 10, 60 and 300 seconds.
    avg10: float
    avg60: float
    avg300: float
    #: Microseconds since boot.
    total: int


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """One row of ``cpu``: a CPU's time, in milliseconds."""

    cpu: int
    user: int
    nice: int
    system: int
    idle: int
    iowait: int
    irq: int
    softirq: int
    steal: int


@dataclass(frozen=True, slots=True)
class Load:
    """The record of ``load``."""

    load1: float
    load5: float
    load15: float
    #: Tasks that run or want to, at this moment.
    running: int
    #: Tasks that wait for I/O.
    blocked: int
    #: Tasks there are, threads included.
    total: int
    #: The pid given out last, in the initial PID namespace.
    last_pid: int


@dataclass(frozen=True, slots=True)
class Counter:
    """One row of ``vmstat``."""

    name: bytes
    value: int


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
