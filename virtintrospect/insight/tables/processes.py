"""Processes, what belongs to them and whose they are."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

_A, _B, _N = Unit.ADDRESS, Unit.BYTES, Unit.NUMBER

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
