"""Why a guest hangs or has crashed."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

_A, _B, _N = Unit.ADDRESS, Unit.BYTES, Unit.NUMBER

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
