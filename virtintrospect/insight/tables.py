"""The tables of the command contract.

Names follow osquery where it has the table (processes, kernel_modules, kernel_info).
"""

from __future__ import annotations

from typing import Any

from virtintrospect.errors import UsageError
from virtintrospect.insight.columns import Column, Table, Unit

_A, _B, _N = Unit.ADDRESS, Unit.BYTES, Unit.NUMBER

LIST = Table(
    "list",
    (
        Column("id", _N),
        Column("name"),
        Column("uuid", brief=False),
        Column("state"),
        Column("os"),
        Column("kernel"),
        Column("session"),
    ),
)

SESSIONS = Table(
    "sessions",
    (
        Column("id", _N),
        Column("name"),
        Column("uuid", brief=False),
        Column("state"),
        Column("since", Unit.EPOCH),
        Column("driver"),
        Column("transport", brief=False),
        Column("kernel"),
        Column("cpu_time", Unit.MILLISECONDS),
        Column("looks", _N, brief=False),
        Column("error", wrap=True),
    ),
)

INFO = Table(
    "info",
    (
        Column("os"),
        Column("release"),
        Column("version"),
        Column("machine"),
        Column("hostname"),
        Column("arguments"),
        Column("boot_time", Unit.EPOCH),
        Column("uptime_seconds", Unit.SECONDS),
        Column("cpus", _N),
        Column("page_mode"),
        Column("kernel_base", _A),
        Column("kaslr_slide", _A),
        Column("build_id", Unit.HEX),
    ),
    source="info",
    help="Show which kernel TARGET runs, and since when.",
    examples=("info web01", "-o json info ./web01.core"),
    single=True,
)

_PS_DETAILS = (
    Column("suid", _N, brief=False),
    Column("sgid", _N, brief=False),
    Column("fsuid", _N, brief=False),
    Column("fsgid", _N, brief=False),
    Column("groups", Unit.LIST, brief=False),
    Column("cap_inheritable", Unit.MASK, brief=False),
    Column("cap_permitted", Unit.MASK, brief=False),
    Column("cap_effective", Unit.MASK, brief=False),
    Column("cap_bounding", Unit.MASK, brief=False),
    Column("cap_ambient", Unit.MASK, brief=False),
    Column("capabilities", Unit.LIST, brief=False),
    Column("no_new_privs", Unit.FLAG, brief=False),
    Column("seccomp", brief=False),
    Column("seccomp_filters", _N, brief=False),
    Column("apparmor", brief=False),
    Column("cgroup_namespace", _N, brief=False),
    Column("ipc_namespace", _N, brief=False),
    Column("mnt_namespace", _N, brief=False),
    Column("net_namespace", _N, brief=False),
    Column("pid_namespace", _N, brief=False),
    Column("time_namespace", _N, brief=False),
    Column("user_namespace", _N, brief=False),
    Column("uts_namespace", _N, brief=False),
    Column("nspid", _N, brief=False),
    Column("pgroup", _N, brief=False),
    Column("session", _N, brief=False),
    Column("tty", brief=False),
    Column("policy", brief=False),
    Column("rt_priority", _N, brief=False),
    Column("cpu", _N, brief=False),
    Column("cpus_allowed", brief=False),
    Column("disk_bytes_read", _B, brief=False),
    Column("disk_bytes_written", _B, brief=False),
    Column("minor_faults", _N, brief=False),
    Column("major_faults", _N, brief=False),
    Column("voluntary_switches", _N, brief=False),
    Column("involuntary_switches", _N, brief=False),
    Column("oom_score_adj", _N, brief=False),
    Column("loginuid", _N, brief=False),
    Column("tracer", _N, brief=False),
)
#: Columns of ``ps`` that are read only when somebody asks for one of them.
PS_DETAILS = frozenset(column.name for column in _PS_DETAILS)

PS = Table(
    "ps",
    (
        Column("pid", _N),
        Column("tid", _N, brief=False),
        Column("parent", _N),
        Column("name"),
        Column("state"),
        Column("uid", _N),
        Column("gid", _N, brief=False),
        Column("euid", _N, brief=False),
        Column("egid", _N, brief=False),
        Column("threads", _N),
        Column("nice", _N, brief=False),
        Column("priority", _N, brief=False),
        Column("start_time", Unit.EPOCH),
        Column("user_time", Unit.MILLISECONDS, brief=False),
        Column("system_time", Unit.MILLISECONDS, brief=False),
        Column("resident_size", _B),
        Column("total_size", _B, brief=False),
        Column("path", brief=False),
        Column("cmdline"),
        Column("cwd", brief=False),
        Column("root", brief=False),
        Column("cgroup_path", brief=False),
        *_PS_DETAILS,
        Column("kernel_thread", Unit.FLAG, brief=False),
        Column("address", _A, brief=False),
        Column("confidence", _N, brief=False),
    ),
    source="processes",
    switches=(
        ("threads", "One row for each thread."),
        ("details", "Columns of PS_DETAILS, too."),
    ),
)

MODULES = Table(
    "modules",
    (
        Column("name"),
        Column("size", _B),
        Column("used_by", Unit.LIST),
        Column("refcount", _N),
        Column("status"),
        Column("address", _A),
        Column("taints"),
    ),
    source="modules",
    help="List the kernel modules of TARGET.",
    examples=("modules web01", "modules web01 -o csv --columns name,taints"),
)

DMESG = Table(
    "dmesg",
    (
        Column("time", Unit.SECONDS),
        Column("level"),
        Column("facility"),
        Column("text", wrap=True),
        Column("timestamp", Unit.EPOCH, brief=False),
    ),
    source="dmesg",
    help="Show the kernel log of TARGET.",
    examples=(
        "dmesg web01",
        "dmesg web01 --follow -o jsonl",
        "dmesg web01 --columns timestamp,level,text",
        "dmesg ./crashed.core | tail",
    ),
    follow="follow_log",
)

MAPS = Table(
    "maps",
    (
        Column("pid", _N, brief=False),
        Column("start", _A),
        Column("end", _A),
        Column("permissions"),
        Column("offset", _N),
        Column("device"),
        Column("inode", _N),
        Column("path", wrap=True),
    ),
    source="maps",
    help="List the memory mappings of a process.",
    examples=("maps web01 1", "maps web01 1234 -o json | jq 'map(select(.path == \"[heap]\"))'"),
    argument="pid",
)

FILES = Table(
    "files",
    (
        Column("pid", _N),
        Column("fd", _N),
        Column("path", wrap=True),
        Column("type"),
        Column("flags", _N, brief=False),
        Column("offset", _N, brief=False),
        Column("inode", _N),
        Column("device", brief=False),
    ),
    source="files",
    help="List the open files of TARGET's processes.",
    examples=("files web01", "files web01 --pid 1234", "files web01 | grep '(deleted)'"),
    by_pid=True,
)

MOUNTS = Table(
    "mounts",
    (
        Column("device"),
        Column("path", wrap=True),
        Column("type"),
        Column("flags", wrap=True),
        Column("namespace", _N),
    ),
    source="mounts",
    help="List the mounted file systems of TARGET, in all its mount namespaces.",
    examples=("mounts web01", "mounts web01 -o csv --columns device,path"),
)

CONTAINERS = Table(
    "containers",
    (
        Column("id"),
        Column("runtime"),
        Column("name"),
        Column("pod_uid", brief=False),
        Column("hostname"),
        Column("processes", _N),
        Column("pid", _N),
        Column("pids", Unit.LIST, brief=False),
        Column("started", Unit.EPOCH),
        Column("memory_current", _B),
        Column("cgroup_path", brief=False),
        Column("namespaces", Unit.LIST, brief=False),
        Column("root", wrap=True),
    ),
    source="containers",
    help="List the containers of TARGET, as its control groups and namespaces show them.",
    examples=(
        "containers web01",
        "containers web01 -o json | jq '.[] | select(.runtime == \"docker\") | .pids'",
    ),
)

NAMESPACES = Table(
    "namespaces",
    (
        Column("inode", _N),
        Column("type"),
        Column("processes", _N),
        Column("pid", _N),
        Column("user_namespace", _N),
        Column("owner", _N),
        Column("parent", _N),
        Column("address", _A, brief=False),
    ),
    source="namespaces",
    help="List the namespaces of TARGET, of every type, and how many processes are in them.",
    examples=("namespaces web01", "namespaces web01 -o json | jq '.[] | select(.type == \"net\")'"),
)

ENV = Table(
    "env",
    (Column("name"), Column("value", wrap=True)),
    source="environment",
    help="Show the environment of a process.",
    examples=("env web01 1", "env web01 1234 -o json"),
    argument="pid",
)

SYMBOLS = Table(
    "symbols",
    (Column("address", _A), Column("type"), Column("name"), Column("offset", _N)),
)

TYPES = Table(
    "types",
    (
        Column("name"),
        Column("kind"),
        Column("offset", _N),
        Column("size", _N),
        Column("bit_offset", _N, brief=False),
        Column("bit_size", _N, brief=False),
        Column("type"),
        Column("value", _N),
    ),
)

TRANSLATE = Table(
    "translate",
    (
        Column("vaddr", _A),
        Column("paddr", _A),
        Column("page_size", _B),
        Column("present", Unit.FLAG),
        Column("writable", Unit.FLAG),
        Column("user", Unit.FLAG),
        Column("executable", Unit.FLAG),
        Column("pgd", _A),
        Column("p4d", _A),
        Column("pud", _A),
        Column("pmd", _A),
        Column("pte", _A),
    ),
)

READ = Table("read", (Column("address", _A), Column("data", Unit.HEX), Column("text")))

MEMORY = Table(
    "memory",
    (
        Column("memory_total", _B),
        Column("memory_free", _B),
        Column("memory_available", _B),
        Column("buffers", _B),
        Column("cached", _B),
        Column("swap_cached", _B),
        Column("active", _B),
        Column("inactive", _B),
        Column("active_anon", _B),
        Column("inactive_anon", _B),
        Column("active_file", _B),
        Column("inactive_file", _B),
        Column("unevictable", _B),
        Column("mlocked", _B),
        Column("swap_total", _B),
        Column("swap_free", _B),
        Column("zswap", _B),
        Column("zswapped", _B),
        Column("dirty", _B),
        Column("writeback", _B),
        Column("anon_pages", _B),
        Column("mapped", _B),
        Column("shmem", _B),
        Column("k_reclaimable", _B),
        Column("slab", _B),
        Column("s_reclaimable", _B),
        Column("s_unreclaim", _B),
        Column("kernel_stack", _B),
        Column("page_tables", _B),
        Column("sec_page_tables", _B),
        Column("nfs_unstable", _B),
        Column("bounce", _B),
        Column("writeback_tmp", _B),
        Column("commit_limit", _B),
        Column("committed_as", _B),
        Column("vmalloc_total", _B),
        Column("vmalloc_used", _B),
        Column("vmalloc_chunk", _B),
        Column("percpu", _B),
        Column("early_memtest_bad", _B),
        Column("hardware_corrupted", _B),
        Column("anon_huge_pages", _B),
        Column("shmem_huge_pages", _B),
        Column("shmem_pmd_mapped", _B),
        Column("file_huge_pages", _B),
        Column("file_pmd_mapped", _B),
        Column("cma_total", _B),
        Column("cma_free", _B),
        Column("unaccepted", _B),
        Column("balloon", _B),
        Column("gpu_active", _B),
        Column("gpu_reclaim", _B),
        Column("huge_pages_total", _N),
        Column("huge_pages_free", _N),
        Column("huge_pages_rsvd", _N),
        Column("huge_pages_surp", _N),
        Column("hugepagesize", _B),
        Column("hugetlb", _B),
        Column("direct_map_4k", _B),
        Column("direct_map_2m", _B),
        Column("direct_map_1g", _B),
    ),
    source="meminfo",
    help="Show the memory figures of TARGET: its own /proc/meminfo, in bytes.",
    examples=("memory web01", "-o json memory web01 | jq .memory_available"),
    single=True,
)

PRESSURE = Table(
    "pressure",
    (
        Column("cgroup"),
        Column("resource"),
        Column("kind"),
        Column("avg10", _N),
        Column("avg60", _N),
        Column("avg300", _N),
        Column("total", _N),
    ),
    source="pressure",
    help="Show what TARGET loses for want of CPU, memory and I/O: PSI, percent and microseconds.",
    examples=(
        "pressure web01",
        "pressure web01 --cgroups",
        "-o json pressure web01 | jq '.[] | select(.avg10 > 5)'",
    ),
    switches=(("cgroups", "Of each control group."),),
)

CPU = Table(
    "cpu",
    (
        Column("cpu", _N),
        Column("user", Unit.MILLISECONDS),
        Column("nice", Unit.MILLISECONDS),
        Column("system", Unit.MILLISECONDS),
        Column("idle", Unit.MILLISECONDS),
        Column("iowait", Unit.MILLISECONDS),
        Column("irq", Unit.MILLISECONDS),
        Column("softirq", Unit.MILLISECONDS),
        Column("steal", Unit.MILLISECONDS),
        Column("load1", _N, brief=False),
        Column("load5", _N, brief=False),
        Column("load15", _N, brief=False),
        Column("running", _N, brief=False),
        Column("blocked", _N, brief=False),
    ),
    source="cpu",
    help="Show what the CPUs of TARGET have spent their time on.",
    examples=("cpu web01", "cpu web01 -o csv"),
)

LOAD = Table(
    "load",
    (
        Column("load1", _N),
        Column("load5", _N),
        Column("load15", _N),
        Column("running", _N),
        Column("blocked", _N),
        Column("total", _N),
        Column("last_pid", _N),
    ),
    source="load",
    help="Show the load averages of TARGET, and how many of its tasks run or wait for I/O.",
    examples=("load web01", "-o json load web01 | jq .load1"),
    single=True,
)

VMSTAT = Table(
    "vmstat",
    (Column("name"), Column("value", _N)),
    source="vmstat",
    help="Show the counters of TARGET's memory management: its own /proc/vmstat.",
    examples=("vmstat web01", "vmstat web01 | grep pgmajfault"),
)

CGROUPS = Table(
    "cgroups",
    (
        Column("path", wrap=True),
        Column("hierarchy", brief=False),
        Column("processes", _N),
        Column("populated", Unit.FLAG, brief=False),
        Column("frozen", Unit.FLAG, brief=False),
        Column("memory_current", _B),
        Column("memory_max", _B),
        Column("memory_high", _B, brief=False),
        Column("memory_low", _B, brief=False),
        Column("memory_min", _B, brief=False),
        Column("swap_current", _B, brief=False),
        Column("swap_max", _B, brief=False),
        Column("memory_events_high", _N, brief=False),
        Column("memory_events_max", _N, brief=False),
        Column("memory_events_oom", _N, brief=False),
        Column("memory_events_oom_kill", _N, brief=False),
        Column("usage_usec", _N),
        Column("user_usec", _N, brief=False),
        Column("system_usec", _N, brief=False),
        Column("nr_periods", _N, brief=False),
        Column("nr_throttled", _N, brief=False),
        Column("throttled_usec", _N),
        Column("cpu_weight", _N, brief=False),
        Column("cpu_max", _N, brief=False),
        Column("cpu_period", _N, brief=False),
        Column("pids_current", _N),
        Column("pids_max", _N, brief=False),
        Column("address", _A, brief=False),
    ),
    source="cgroups",
    help="List the control groups of TARGET: what they use of memory and CPU, and their limits.",
    examples=(
        "cgroups web01",
        "cgroups web01 --path /system.slice",
        "cgroups web01 -o json | jq '.[] | select(.memory_events_oom_kill > 0) | .path'",
    ),
    texts=(("path", "Only this group and those below it."),),
)

SLABS = Table(
    "slabs",
    (
        Column("name"),
        Column("active_objs", _N),
        Column("num_objs", _N),
        Column("objsize", _N),
        Column("objperslab", _N),
        Column("pagesperslab", _N),
        Column("active_slabs", _N, brief=False),
        Column("num_slabs", _N),
        Column("size", _B),
        Column("address", _A, brief=False),
    ),
    source="slabs",
    help="Show the caches of TARGET's kernel objects: its own /proc/slabinfo.",
    examples=("slabs web01", "slabs web01 -o json | jq 'max_by(.size).name'"),
)

INTERFACES = Table(
    "interfaces",
    (
        Column("interface"),
        Column("mac"),
        Column("mtu", _N),
        Column("state"),
        Column("flags", Unit.LIST, brief=False),
        Column("address"),
        Column("prefix", _N),
        Column("family", brief=False),
        Column("scope", brief=False),
        Column("broadcast", brief=False),
        Column("peer", brief=False),
        Column("index", _N, brief=False),
        Column("kind", brief=False),
        Column("driver", brief=False),
        Column("master", brief=False),
        Column("rx_bytes", _B),
        Column("tx_bytes", _B),
        Column("rx_packets", _N, brief=False),
        Column("tx_packets", _N, brief=False),
        Column("rx_errors", _N, brief=False),
        Column("tx_errors", _N, brief=False),
        Column("rx_dropped", _N, brief=False),
        Column("tx_dropped", _N, brief=False),
        Column("net_namespace", _N, brief=False),
    ),
    source="interfaces",
    help="List the network interfaces of TARGET and their addresses, in all namespaces.",
    examples=("interfaces web01", "interfaces web01 --columns interface,flags,net_namespace"),
)

SOCKETS = Table(
    "sockets",
    (
        Column("pid", _N),
        Column("fd", _N),
        Column("socket", _N, brief=False),
        Column("family"),
        Column("protocol"),
        Column("local_address"),
        Column("local_port", _N),
        Column("remote_address"),
        Column("remote_port", _N),
        Column("state"),
        Column("path"),
        Column("recv_queue", _N, brief=False),
        Column("send_queue", _N, brief=False),
        Column("uid", _N, brief=False),
        Column("net_namespace", _N, brief=False),
        Column("address", _A, brief=False),
    ),
    source="sockets",
    help="List the sockets of TARGET and who has them open, in all namespaces.",
    examples=(
        "sockets web01 --listening",
        "sockets web01 --pid 1",
        "sockets web01 -o json | jq '.[] | select(.remote_port == 5432)'",
    ),
    by_pid=True,
    switches=(("listening", "Only those that wait for others to connect, or to send."),),
)

ROUTES = Table(
    "routes",
    (
        Column("destination"),
        Column("netmask", _N),
        Column("gateway"),
        Column("interface"),
        Column("source"),
        Column("metric", _N),
        Column("type"),
        Column("table"),
        Column("protocol"),
        Column("scope", brief=False),
        Column("flags", Unit.LIST, brief=False),
        Column("mtu", _B, brief=False),
        Column("weight", _N, brief=False),
        Column("tos", _N, brief=False),
        Column("source_prefix", brief=False),
        Column("nexthop", _N, brief=False),
        Column("family", brief=False),
        Column("net_namespace", _N, brief=False),
    ),
    source="routes",
    help="List the routes of TARGET: both IP versions, all tables and namespaces.",
    examples=(
        "routes web01",
        "routes web01 -o json | jq '.[] | select(.table == \"main\" and .netmask == 0)'",
    ),
)

NEIGHBOURS = Table(
    "neighbours",
    (
        Column("address"),
        Column("mac"),
        Column("interface"),
        Column("state"),
        Column("permanent", Unit.FLAG, brief=False),
        Column("flags", Unit.LIST),
        Column("family", brief=False),
        Column("net_namespace", _N, brief=False),
    ),
    source="neighbours",
    help="List the neighbours of TARGET on its links (ARP and NDISC), in all namespaces.",
    examples=("neighbours web01", "neighbours web01 -o csv --columns address,mac"),
)

BPF = Table(
    "bpf",
    (
        Column("kind"),
        Column("id", _N),
        Column("name"),
        Column("type"),
        Column("attach_type"),
        Column("attach_function", brief=False),
        Column("tag", brief=False),
        Column("loaded_at", Unit.EPOCH),
        Column("uid", _N, brief=False),
        Column("size", _B, brief=False),
        Column("jited_size", _B, brief=False),
        Column("maps", Unit.LIST, brief=False),
        Column("key_size", _B, brief=False),
        Column("value_size", _B, brief=False),
        Column("max_entries", _N),
        Column("map_flags", _N, brief=False),
        Column("frozen", Unit.FLAG, brief=False),
        Column("pinned"),
        Column("pids", Unit.LIST),
        Column("address", _A, brief=False),
    ),
    source="bpf",
    help="List the eBPF programs and maps of TARGET, and who holds them.",
    examples=(
        "bpf web01",
        "bpf web01 -o json | jq '.[] | select(.kind == \"prog\" and .pids == [])'",
    ),
)

TIMERS = Table(
    "timers",
    (
        Column("kind"),
        Column("cpu", _N),
        Column("clock"),
        Column("expires_in", Unit.SECONDS),
        Column("function"),
        Column("work"),
        Column("pids", Unit.LIST),
        Column("expires", Unit.SECONDS, brief=False),
        Column("flags", Unit.LIST, brief=False),
        Column("address", _A, brief=False),
    ),
    source="timers",
    help="List the pending timers of TARGET: what its kernel will do when.",
    examples=("timers web01", "timers web01 -o json | jq '.[] | select(.pids == [1234])'"),
)

SYSCTL = Table(
    "sysctl",
    (
        Column("name"),
        Column("value", wrap=True),
        Column("handler", brief=False),
        Column("mode", brief=False),
        Column("net_namespace", _N),
    ),
    source="sysctl",
    help="List the kernel parameters of TARGET (sysctl), in all network namespaces.",
    examples=("sysctl web01", "sysctl web01 net.ipv4.conf", "sysctl web01 'kernel.*panic*'"),
    pattern="Only names that match this shell pattern, or that are below this name.",
)
USERS = Table(
    "users",
    (
        Column("uid", _N),
        Column("name"),
        Column("gid", _N),
        Column("euid", _N),
        Column("egid", _N),
        Column("processes", _N),
    ),
    source="users",
    help="List the credentials that TARGET's processes have, and how many have each.",
    examples=("users web01", "users web01 -o json | jq '.[] | select(.uid != .euid)'"),
)

LOGINS = Table(
    "logins",
    (
        Column("type"),
        Column("user"),
        Column("tty"),
        Column("host"),
        Column("time", Unit.EPOCH),
        Column("pid", _N),
        Column("uid", _N, brief=False),
        Column("session"),
        Column("source"),
    ),
    source="logins",
    help="List who is logged in to TARGET.",
    examples=("logins web01", "logins web01 -o json | jq -r '.[].user'"),
)

DOMMEMSTAT = Table(
    "dommemstat",
    (
        Column("actual", _N),
        Column("swap_in", _N),
        Column("swap_out", _N),
        Column("major_fault", _N),
        Column("minor_fault", _N),
        Column("unused", _N),
        Column("available", _N),
        Column("usable", _N),
        Column("last_update", _N),
        Column("disk_caches", _N),
        Column("hugetlb_pgalloc", _N),
        Column("hugetlb_pgfail", _N),
        Column("rss", _N),
    ),
    single=True,
    line="{name} {value}",
)


def guestinfo_table(values: dict[str, Any]) -> Table:
    """The table that has the keys of one ``guestinfo`` as its columns, written as virsh does."""
    units = {bool: Unit.FLAG, int: _N, float: Unit.REAL}
    columns = (Column(key, units.get(type(value), Unit.TEXT)) for key, value in values.items())
    return Table("guestinfo", tuple(columns), single=True, line="{name:<20}: {value}")


STACK = Table(
    "stack",
    (
        Column("pid", _N),
        Column("tid", _N),
        Column("name"),
        Column("cpu", _N),
        Column("frame", _N),
        Column("address", _A),
        Column("symbol", wrap=True),
        Column("function", brief=False),
        Column("offset", _N, brief=False),
        Column("module", brief=False),
        Column("stack_pointer", _A, brief=False),
        Column("found_by"),
        Column("confidence", _N),
    ),
    source="stack",
    help="Show the kernel stack of a process or thread, innermost frame first.",
    examples=("stack web01 812", "stack web01 812 --threads", "-o csv stack ./web01.core 1"),
    argument="pid",
    switches=(("threads", "The stacks of all threads of the process."),),
)

RUNQUEUES = Table(
    "runqueues",
    (
        Column("cpu", _N),
        Column("pid", _N),
        Column("tid", _N, brief=False),
        Column("name"),
        Column("idle", Unit.FLAG),
        Column("running_for", Unit.MILLISECONDS),
        Column("clock_age", Unit.MILLISECONDS),
        Column("running", _N),
        Column("fair", _N),
        Column("realtime", _N),
        Column("deadline", _N),
        Column("fair_weight", _N, brief=False),
        Column("load_average", _N, brief=False),
        Column("utilization", _N),
        Column("uninterruptible", _N, brief=False),
        Column("iowait", _N),
        Column("switches", _N),
    ),
    source="runqueues",
    help="Show what the CPUs of TARGET are running, and what waits for them.",
    examples=("runqueues web01", "-o json runqueues web01 | jq 'map(select(.running > 2))'"),
)

HUNG = Table(
    "hung",
    (
        Column("kind"),
        Column("pid", _N),
        Column("tid", _N, brief=False),
        Column("name"),
        Column("cpu", _N),
        Column("state"),
        Column("seconds", Unit.SECONDS),
        Column("killable", Unit.FLAG, brief=False),
        Column("iowait", Unit.FLAG, brief=False),
        Column("wait_channel"),
        Column("waits_for"),
        Column("lock", _A, brief=False),
        Column("owner_pid", _N),
        Column("owner_name"),
        Column("time", Unit.SECONDS),
        Column("text", wrap=True),
        Column("stack", Unit.LIST, brief=False),
    ),
)

CRASH = Table(
    "crash",
    (
        Column("state"),
        Column("message"),
        Column("error"),
        Column("time", Unit.SECONDS),
        Column("cpu", _N),
        Column("pid", _N),
        Column("tid", _N, brief=False),
        Column("name"),
        Column("taints", Unit.LIST),
        Column("taint_letters"),
        Column("tainting_modules", Unit.LIST),
        Column("panic_on_oops", Unit.FLAG),
        Column("panic_timeout", _N),
        Column("release"),
        Column("version"),
        Column("hostname"),
        Column("boot_time", Unit.EPOCH),
        Column("uptime_seconds", Unit.SECONDS),
        Column("cpus", _N),
        Column("tasks", _N),
        Column("blocked_tasks", Unit.LIST),
        Column("memory_total", _B),
        Column("memory_available", _B),
        Column("stack", Unit.LIST),
        Column("stack_found_by"),
        Column("log", Unit.LIST),
    ),
)

#: Tables that need no more than their declaration to be commands.
COMMANDS = (
    INFO,
    MODULES,
    DMESG,
    MEMORY,
    PRESSURE,
    CPU,
    LOAD,
    VMSTAT,
    SLABS,
    CGROUPS,
    MAPS,
    FILES,
    MOUNTS,
    CONTAINERS,
    NAMESPACES,
    ENV,
    INTERFACES,
    SOCKETS,
    ROUTES,
    NEIGHBOURS,
    BPF,
    TIMERS,
    SYSCTL,
    STACK,
    RUNQUEUES,
    USERS,
    LOGINS,
)

#: Every table, by its command's name.
ALL = {
    table.name: table
    for table in (LIST, PS, *COMMANDS, HUNG, CRASH, DOMMEMSTAT, SYMBOLS, TYPES, TRANSLATE, READ)
}


def find(name: str) -> Table:
    """The table of a command that shows one of a guest.

    :raises UsageError: there is none of that name.
    """
    known = {table.name: table for table in (PS, *COMMANDS)}
    if name not in known:
        raise UsageError(f"there is no table {name!r}", hint=f"there are: {', '.join(known)}")
    return known[name]
