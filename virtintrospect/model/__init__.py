"""Records: what the tables are made of. Frozen, flat, and independent of any guest OS.

``None`` means that a field is not known; output leaves such a field out. Strings that came
from the guest are ``bytes``: what they may contain is up to a stranger, and the one place that
makes them printable is the output.

Each record is loaded when it is first asked for: making all of these classes takes 9 ms, and a
command needs one or two.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtintrospect.model.bpf import BpfObject
    from virtintrospect.model.cgroups import ControlGroup
    from virtintrospect.model.counters import (
        BalloonStats,
        CacheUse,
        Counter,
        CpuTimes,
        Load,
        MemoryInfo,
        Pressure,
        SlabCache,
    )
    from virtintrospect.model.event import (
        Breakpoint,
        Event,
        EventKind,
        MemoryAccess,
        RegisterWrite,
        SingleStep,
    )
    from virtintrospect.model.files import (
        EnvironmentVariable,
        MemoryArea,
        MemoryFilesystem,
        Mount,
        OpenFile,
    )
    from virtintrospect.model.finding import Finding
    from virtintrospect.model.hint import Hint
    from virtintrospect.model.kernel import LogRecord, Module, Sysctl, SystemInfo, Timer
    from virtintrospect.model.machines import InnerGuest
    from virtintrospect.model.match import Match
    from virtintrospect.model.namespaces import Container, Namespace
    from virtintrospect.model.network import Interface, Neighbour, Route, Socket
    from virtintrospect.model.pages import PageOwners, ProcessPages
    from virtintrospect.model.problem import Problem
    from virtintrospect.model.process import Process
    from virtintrospect.model.stack import CpuSigns, Crash, RunQueue, StackFrame, Stall
    from virtintrospect.model.users import Login, User

__all__ = [
    "BalloonStats",
    "BpfObject",
    "Breakpoint",
    "CacheUse",
    "Container",
    "ControlGroup",
    "Counter",
    "CpuSigns",
    "CpuTimes",
    "Crash",
    "EnvironmentVariable",
    "Event",
    "EventKind",
    "Finding",
    "Hint",
    "InnerGuest",
    "Interface",
    "Load",
    "LogRecord",
    "Login",
    "Match",
    "MemoryAccess",
    "MemoryArea",
    "MemoryFilesystem",
    "MemoryInfo",
    "Module",
    "Mount",
    "Namespace",
    "Neighbour",
    "OpenFile",
    "PageOwners",
    "Pressure",
    "Problem",
    "Process",
    "ProcessPages",
    "RegisterWrite",
    "Route",
    "RunQueue",
    "SingleStep",
    "SlabCache",
    "Socket",
    "StackFrame",
    "Stall",
    "Sysctl",
    "SystemInfo",
    "Timer",
    "User",
]

_WHERE = {
    "ControlGroup": "cgroups",
    "BpfObject": "bpf",
    "Problem": "problem",
    "SystemInfo": "kernel",
    "Module": "kernel",
    "LogRecord": "kernel",
    "Sysctl": "kernel",
    "Timer": "kernel",
    "Process": "process",
    "MemoryArea": "files",
    "OpenFile": "files",
    "MemoryFilesystem": "files",
    "Mount": "files",
    "EnvironmentVariable": "files",
    "MemoryInfo": "counters",
    "Pressure": "counters",
    "CpuTimes": "counters",
    "Load": "counters",
    "CacheUse": "counters",
    "Counter": "counters",
    "SlabCache": "counters",
    "Container": "namespaces",
    "Namespace": "namespaces",
    "BalloonStats": "counters",
    "Interface": "network",
    "Neighbour": "network",
    "Route": "network",
    "Socket": "network",
    "StackFrame": "stack",
    "CpuSigns": "stack",
    "RunQueue": "stack",
    "Stall": "stack",
    "Crash": "stack",
    "Event": "event",
    "EventKind": "event",
    "Breakpoint": "event",
    "MemoryAccess": "event",
    "RegisterWrite": "event",
    "SingleStep": "event",
    "Finding": "finding",
    "Hint": "hint",
    "InnerGuest": "machines",
    "Match": "match",
    "PageOwners": "pages",
    "ProcessPages": "pages",
    "User": "users",
    "Login": "users",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
