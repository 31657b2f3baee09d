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

#: Tables that need no more than their declaration to be commands.
COMMANDS = (INFO, MODULES, DMESG, MAPS, FILES, MOUNTS, ENV)
