"""Figures of memory and CPU."""

from __future__ import annotations

from dataclasses import dataclass


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
    high_total: int | None
    high_free: int | None
    low_total: int | None
    low_free: int | None
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
    direct_map_4m: int | None
    direct_map_1g: int | None


@dataclass(frozen=True, slots=True)
class Pressure:
    """One row of ``pressure``: pressure stall information (PSI)."""

    #: Path of the control group; ``None`` for the whole guest.
    cgroup: bytes | None
    #: cpu, memory, io or irq.
    resource: str
    #: some: at least one task waited; full: all tasks did.
    kind: str
    #: Percent of the last 10, 60 and 300 seconds.
    avg10: float
    avg60: float
    avg300: float
    #: Microseconds since boot, or since the group was made.
    total: int


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """One row of ``cpu``: a CPU's time, in milliseconds.

    What follows is of the whole guest, the same in each row, as :class:`Load` has it.
    """

    cpu: int
    user: int
    nice: int
    system: int
    idle: int
    iowait: int
    irq: int
    softirq: int
    steal: int
    load1: float | None
    load5: float | None
    load15: float | None
    running: int | None
    blocked: int | None


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How much of the page cache is in use, and what MemAvailable lacks; bytes."""

    #: Pages of files that the kernel may evict, by its own count.
    total: int
    #: Those of them that were used more than once, or that a process maps: an estimate.
    used_again: int
    #: Those that MemAvailable does not count as available: half of them, or as many as the zones'
    #: low watermarks (si_mem_available() of mm/show_mem.c).
    kept: int
    #: Free pages that CPUs keep for themselves, which MemAvailable does not count either; without
    #: those that each of them always may keep.
    on_cpus: int
    #: Pages of the cache in the sample that the estimate is made from.
    sampled: int
    #: What of ``used_again`` belongs to regular files, which nothing uses but calls that read or
    #: write and processes that map; ``None`` where that is not known.
    files: int | None = None
    #: Pages of files that processes map now.
    mapped: int | None = None
    #: How much of files can have been used since boot, each time that it was used: a counter.
    touched: int | None = None
    #: What uses files and is not in that counter.
    uncounted: tuple[str, ...] = ()


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
class SlabCache:
    """One row of ``slabs``: a line of /proc/slabinfo."""

    name: bytes
    #: Objects in use, those included that CPUs keep in reserve.
    active_objs: int | None
    num_objs: int | None
    #: Bytes that an object takes up.
    objsize: int | None
    objperslab: int
    pagesperslab: int
    active_slabs: int | None
    num_slabs: int | None
    #: Bytes of all its slabs.
    size: int | None
    #: Virtual address of the ``struct kmem_cache``.
    address: int


@dataclass(frozen=True, slots=True)
class BalloonStats:
    """What ``virsh dommemstat`` has from the guest: KiB, and counts of events."""

    swap_in: int | None
    swap_out: int | None
    major_fault: int | None
    #: All page faults, the major ones included: what the driver reports under this name.
    minor_fault: int | None
    unused: int
    available: int
    usable: int
    disk_caches: int
    hugetlb_pgalloc: int | None
    hugetlb_pgfail: int | None
