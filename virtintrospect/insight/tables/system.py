"""The guest as a whole: its kernel, log, modules and parameters."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

_A, _B, _N = Unit.ADDRESS, Unit.BYTES, Unit.NUMBER

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
    single=True,
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

NESTED = Table(
    "nested",
    (
        Column("pid", _N),
        Column("name"),
        Column("uuid"),
        Column("program"),
        Column("vcpus", _N),
        Column("page_mode"),
        Column("root", _A, brief=False),
        Column("address", _A, brief=False),
    ),
    source="nested",
    help="List the guests that TARGET runs itself, by its own KVM.",
    examples=("nested hypervisor01", "ps hypervisor01 --nested web01"),
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
