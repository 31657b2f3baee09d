"""What a guest was like once, and how it differs now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import (
    MemoryAccessError,
    NoSuchTargetError,
    OutputError,
    UsageError,
    VirtIntrospectError,
)
from virtintrospect.guests.linux.taints import letters
from virtintrospect.insight.checks.context import NONSENSE
from virtintrospect.insight.checks.entries import syscall_targets
from virtintrospect.insight.checks.listening import listeners
from virtintrospect.insight.checks.rule import Hit, Rule
from virtintrospect.symbols.cachefiles import write_file

if TYPE_CHECKING:
    from virtintrospect.insight.checks.context import Context

FORMAT, VERSION = "virtintrospect baseline", 1
#: Larger files, and longer lists, are no baseline.
_LARGEST, _MOST = 16 << 20, 1 << 16
#: UDP ports that clients get when they ask for none (net.ipv4.ip_local_port_range).
_EPHEMERAL = range(32768, 61000)

#: What a baseline has, by name: a text, or a list of texts that may come and go.
_SINGLE = {"release": "the kernel", "build_id": "the kernel's build", "arguments": "its arguments"}
#: Lists: what one of them is called, and how severe it is that one is new, or gone.
_LISTS = {
    "modules": ("module", "medium", "low"),
    "listening": ("listening socket", "medium", "low"),
    "root_programs": ("root program", "low", "info"),
    "root_users": ("root of user", "medium", "info"),
    "bpf": ("eBPF program", "low", "info"),
    "taints": ("taint", "medium", "info"),
    "syscalls": ("system call", "high", "high"),
}


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "backslashreplace")


def _root_programs(context: Context) -> list[str]:
    """Executables of user 0, kernel threads left out."""
    rows = context.processes
    return [_text(row.path) for row in rows if row.path and not row.kernel_thread and row.euid == 0]


def _listening(context: Context) -> list[str]:
    found = listeners(context).items()
    return [
        where
        for where, sockets in found
        if sockets[0].protocol != "udp" or sockets[0].local_port not in _EPHEMERAL
    ]


def _root_users(context: Context) -> list[str]:
    """Users that have processes of effective user 0."""
    rows = context.processes
    return [str(row.uid) for row in rows if row.euid == 0 and row.uid is not None]


def _bpf(context: Context) -> list[str]:
    rows = context.guest.bpf()
    return [f"{row.type} {_text(row.name)}".strip() for row in rows if row.kind == "prog"]


def _syscalls(context: Context) -> list[str]:
    """Each entry of each table, by the symbol that it leads to."""
    found = []
    for name, entries in syscall_targets(context.guest).items():
        found += [
            f"{name}[{index}] {_text(context.code.shown(target)).partition('/')[0]}"
            for index, (_, target) in enumerate(entries)
        ]
    return found


_TAKEN: dict[str, Callable[[Context], str | list[str]]] = {
    "release": lambda context: _text(context.guest.info().release),
    "build_id": lambda context: context.guest.build_id.hex(),
    "arguments": lambda context: _text(context.guest.info().arguments),
    "modules": lambda context: [_text(module.name) for module in context.guest.modules()],
    "listening": _listening,
    "root_programs": _root_programs,
    "root_users": _root_users,
    "bpf": _bpf,
    "taints": lambda context: list(letters(context.guest.pointer("tainted_mask"))),
    "syscalls": _syscalls,
}


def take(context: Context) -> dict[str, Any]:
    """What the guest is like now. What cannot be read is left out, and noted."""
    found: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for name, read in _TAKEN.items():
        try:
            value = read(context)
        except VirtIntrospectError as error:
            if isinstance(error, MemoryAccessError) and not hasattr(error, "address"):
                raise  # the guest is gone
            context.cannot(f"drift: {name}: {error.message}")
        except NONSENSE as error:
            context.cannot(f"drift: {name}: what the guest says makes no sense: {error!r}")
        else:
            found[name] = value if isinstance(value, str) else sorted(set(value))
    return found


def drift(context: Context) -> Iterator[Hit]:
    """Every difference from the baseline."""
    then = context.options.baseline
    if then is None:
        return
    now = take(context)
    for name, what in _SINGLE.items():
        if name in then and name in now and then[name] != now[name]:
            yield Hit(
                what.encode(),
                f"it was {then[name]!r} and is {now[name]!r}".encode(),
                {"baseline": then[name], "now": now[name]},
            )
    for name in (*_SINGLE, *_LISTS):
        if name in now and name not in then:
            context.cannot(f"drift: {name}: the baseline does not have it")
    same_build = then.get("build_id") == now.get("build_id")
    for name, (what, new, gone) in _LISTS.items():
        if name not in now or name not in then or (name == "syscalls" and not same_build):
            continue
        before, after = set(then[name]), set(now[name])
        for item in sorted(after - before):
            yield Hit(
                f"{what} {item}".encode(),
                b"it is not in the baseline",
                {"change": "new", "kind": name},
                new,
            )
        for item in sorted(before - after):
            yield Hit(
                f"{what} {item}".encode(),
                b"it is in the baseline, and no longer there",
                {"change": "gone", "kind": name},
                gone,
            )


def load(path: Path) -> dict[str, Any]:
    """Read a baseline from a file.

    :raises NoSuchTargetError: the file cannot be read.
    :raises UsageError: it is no baseline.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise NoSuchTargetError(
            f"cannot read {path}: {error.strerror}", hint="--save-baseline makes one"
        ) from error
    try:
        found = json.loads(content) if len(content) <= _LARGEST else None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no baseline: {error}") from error
    return checked(found, str(path))


def checked(found: Any, name: str) -> dict[str, Any]:
    """A baseline of whatever came out of JSON.

    :raises UsageError: it is none, or of another version.
    """
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise UsageError(f"{name} is no baseline", hint="--save-baseline makes one")
    if found.get("version") != VERSION:
        raise UsageError(
            f"{name} is a baseline of version {found.get('version')!r:.20}, not {VERSION}",
            hint="make it anew with --save-baseline",
        )
    for key, value in found.items():
        texts = isinstance(value, list) and all(isinstance(item, str) for item in value[:_MOST])
        right = isinstance(value, str) if key in _SINGLE else texts and len(value) <= _MOST
        if key in (*_SINGLE, *_LISTS) and not right:
            raise UsageError(f"{name} is a damaged baseline: {key}")
    return dict(found)


def save(path: Path, baseline: Mapping[str, Any]) -> None:
    """Write a baseline to a file for its owner alone, whole or not at all.

    :raises OutputError: it cannot be written.
    """
    text = json.dumps(baseline, indent=1, sort_keys=True) + "\n"
    try:
        # By a name that nobody can foresee: others may write in that folder, too.
        write_file(path, [text.encode()])
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


RULES = (
    Rule(
        id="drift",
        severity="medium",
        title="The guest is not as it was",
        looks_at="The kernel's release, build and arguments, its modules, listening sockets, "
        "programs that run as root, users that are root, eBPF programs, taints, and where each "
        "system call leads, against --baseline. A system call that leads elsewhere is high, a new "
        "root or eBPF program low, what is gone low or info.",
        remedy="Find out who changed it. If it was meant, make the baseline anew with "
        "--save-baseline.",
        false_positives="Updates change the kernel; services and timers start programs and load "
        "eBPF: take the baseline while the guest does what it usually does.",
        blind="Without --baseline it has nothing to compare with. A baseline of a guest that was "
        "broken into already. UDP sockets of ports from 32768 on, which clients get; system calls "
        "of another build of the kernel.",
        reference="T1601",
        check=drift,
        needs="--baseline",
    ),
)
