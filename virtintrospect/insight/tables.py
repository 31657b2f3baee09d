"""The tables of the command contract.

Names follow osquery where it has the table (processes, kernel_modules, kernel_info).
"""

from __future__ import annotations

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
        Column("kernel_thread", Unit.FLAG, brief=False),
        Column("address", _A, brief=False),
        Column("confidence", _N, brief=False),
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
    ),
    source="dmesg",
    help="Show the kernel log of TARGET.",
    examples=("dmesg web01", "dmesg ./crashed.core | tail"),
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
        Column("rx_bytes", _B),
        Column("tx_bytes", _B),
        Column("rx_packets", _N, brief=False),
        Column("tx_packets", _N, brief=False),
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

#: Tables that need no more than their declaration to be commands.
COMMANDS = (INFO, MODULES, DMESG, INTERFACES, SOCKETS)
