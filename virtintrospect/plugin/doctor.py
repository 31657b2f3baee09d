"""Everything that ``doctor`` looks at on this host, and what to do about it."""

from __future__ import annotations

import os
import shlex
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from virtintrospect.domain import Domain
from virtintrospect.driver import Access, driver_for
from virtintrospect.errors import (
    AccessDeniedError,
    EncryptedMemoryError,
    TargetGoneError,
    VirtIntrospectError,
)
from virtintrospect.host import Host, default_uri
from virtintrospect.plugin import backing, confinement
from virtintrospect.plugin.check import NOTE, OK, PROBLEM, WARNING, Check
from virtintrospect.plugin.daemons import Daemon
from virtintrospect.plugin.hooks import DRIVERS, Hooks
from virtintrospect.symbols.store import default_directory

#: Events that the hook leaves at most.
_SPOOL_FILES = 1000
_LITTLE_SPACE = 16 << 20
#: What anonymous RAM costs, measured by `make bench` (docs/performance.md).
_COST = (
    "every read is a system call: a 64-bit read takes 5 times as long as on shared RAM, a bulk "
    "read reaches 70 % of memcpy instead of 95 %"
)


def examine(uri: str | None, target: str | None, hooks: Hooks) -> Iterator[Check]:
    """All checks; those of domains last.

    :param uri: libvirt connection; ``None`` for the default of virsh.
    :param target: only this domain's memory; ``None``: every domain's.
    """
    daemons = hooks.daemons()
    yield from _daemons(daemons)
    yield from confinement.checks(daemons, hooks.root)
    yield from _hooks(hooks)
    yield _our_daemon(hooks)
    yield from _spool(hooks)
    yield _cache()
    yield from _libvirt(uri, target, hooks)


# -- libvirt and its domains ----------------------------------------------------------------


def _daemons(daemons: list[Daemon]) -> Iterator[Check]:
    """Whether libvirt is monolithic or modular here."""
    for daemon in daemons:
        kind = "monolithic" if daemon.name == "libvirtd" else "modular"
        yield Check("libvirt", OK, f"{daemon.name}[{daemon.pid}]", f"runs ({kind})")
    if not daemons:
        yield Check(
            "libvirt", WARNING, "daemon", "neither libvirtd nor virtqemud nor virtxend runs (with "
            "socket activation they may be asleep)", "systemctl start libvirtd (or virtqemud)",
        )  # fmt: skip


def _libvirt(uri: str | None, target: str | None, hooks: Hooks) -> Iterator[Check]:
    wanted: list[str | None] = [uri or default_uri()]
    if uri is None and "xen" in hooks.drivers:
        wanted.append("xen:///system")
    for each in wanted:
        try:
            with Host(each) as host:
                yield from _versions(host)
                domains = [host.domain(target)] if target else list(host.domains())
                for domain in domains:
                    yield from _memory(host, domain)
        except VirtIntrospectError as error:
            if target and error.exit_code == 3:
                raise
            yield _from(error, "libvirt", PROBLEM, each or "the default URI")


def _versions(host: Host) -> Iterator[Check]:
    library, daemon, hypervisor = (_version(number) for number in host.versions())
    detail = f"answers: libvirt {daemon}, {host.hypervisor} {hypervisor}"
    yield Check("libvirt", OK, host.uri, detail)
    if library != daemon:
        detail = f"library {library} talks to a daemon {daemon}: works, if an upgrade is under way"
        advice = "restart libvirt's daemon if it was upgraded; guests go on"
        yield Check("libvirt", NOTE, "versions", detail, advice)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _memory(host: Host, domain: Domain) -> Iterator[Check]:
    """How the memory of a domain can be reached, now or at its next start."""
    if domain.hypervisor == "QEMU" and (machine := backing.unsupported_machine(domain.xml)):
        detail = f"machine type {machine!r}: its memory map is not known"
        advice = "q35 and pc are supported; or look at a dump (virsh dump --memory-only)"
        yield Check("memory", WARNING, domain.name, detail, advice)
        return
    if not domain.active:
        yield _at_next_start(domain)
        return
    try:
        with driver_for(domain).open(domain, Access(slow=False)) as opened:
            transport = opened.transport
    except EncryptedMemoryError as error:
        yield _from(error, "memory", WARNING, domain.name)
    except TargetGoneError:
        pass  # it ended while we looked
    except AccessDeniedError as error:
        yield _from(error, "memory", PROBLEM, domain.name)
    except VirtIntrospectError as error:
        yield _from(error, "memory", WARNING, domain.name)
    else:
        yield _transport(host, domain, transport)


def _transport(host: Host, domain: Domain, transport: str) -> Check:
    if transport != "kvm-process":
        detail = f"{transport}: RAM is mapped" if transport == "kvm-mmap" else transport
        return Check("memory", OK, domain.name, detail)
    persistent = host.persistent_xml(domain)
    if persistent is None:
        advice = (
            "transient: whoever creates it can put <memoryBacking><source type='memfd'/>"
            "<access mode='shared'/></memoryBacking> into its XML"
        )
    elif backing.is_shared(persistent):
        advice = "shared RAM comes with its next start (not with a reboot in the guest)"
    else:
        advice = _fix(domain)
    return Check("memory", NOTE, domain.name, f"{transport}: anonymous RAM, {_COST}", advice)


def _at_next_start(domain: Domain) -> Check:
    if domain.hypervisor != "QEMU":
        return Check("memory", OK, domain.name, domain.state)
    if backing.is_confidential(domain.xml):
        return Check("memory", WARNING, domain.name, "a confidential guest: cannot be read")
    if backing.is_shared(domain.xml):
        return Check("memory", OK, domain.name, f"{domain.state}; will have shared RAM")
    advice = _fix(domain)
    return Check(
        "memory", NOTE, domain.name, f"{domain.state}; will have anonymous RAM: {_COST}", advice
    )


def _fix(domain: Domain) -> str:
    """A command to copy: a domain may be called by what a shell would execute."""
    return f"virt-introspect doctor --fix-memory-backing {shlex.quote(domain.name)}"


# -- our own --------------------------------------------------------------------------------


def _hooks(hooks: Hooks) -> Iterator[Check]:
    for status in hooks.status():
        subject = f"{DRIVERS[status.driver]}.d"
        if status.state == "missing":
            detail = "no hook is installed: the daemon learns of guests later"
            yield Check("hooks", NOTE, subject, detail, status.advice)
        elif status.good:
            seen = {True: ", libvirt knows of it", None: ", no daemon of libvirt runs"}
            yield Check("hooks", OK, subject, "installed" + seen[status.seen])
        else:
            unseen = "libvirt does not know of it" if status.seen is False else status.state
            yield Check("hooks", PROBLEM, subject, unseen, status.advice)
    for path in hooks.strays():
        detail = "left by an editor or a package manager, and libvirt runs it as a hook"
        yield Check("hooks", PROBLEM, str(path), detail, "remove it, or its run bits")
    for path in hooks.not_executable():
        if path != hooks.path("qemu") and path != hooks.path("xen"):
            detail = "is not executable: libvirt skips it"
            yield Check("hooks", WARNING, str(path), detail, "chmod +x, or move it away")


def _our_daemon(hooks: Hooks) -> Check:
    path = hooks.below(hooks.places.run) / "daemon.sock"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
        except FileNotFoundError:
            detail = "does not run: each command opens a session of its own"
            return Check("daemon", NOTE, "virt-introspectd", detail)
        except OSError as error:
            detail = f"{path} is there, but nobody answers: {error.strerror or 'too slow'}"
            return Check("daemon", PROBLEM, "virt-introspectd", detail, "restart virt-introspectd")
    return Check("daemon", OK, "virt-introspectd", f"answers on {path}")


def _spool(hooks: Hooks) -> Iterator[Check]:
    path = hooks.below(hooks.places.spool)
    waiting = hooks.spooled()
    if waiting is None:
        return
    space = os.statvfs(path)
    free = space.f_bavail * space.f_frsize
    if free < _LITTLE_SPACE:
        detail = f"{free >> 10} KiB are free: events may be lost while the daemon is down"
        yield Check("spool", WARNING, str(path), detail, "make room on this file system")
    elif waiting >= _SPOOL_FILES:
        detail = f"{waiting} events wait: it is full, later ones are dropped"
        yield Check("spool", WARNING, str(path), detail, "start virt-introspectd")
    else:
        yield Check("spool", OK, str(path), f"{waiting} events wait, {free >> 20} MiB are free")


def _cache() -> Check:
    path = default_directory()
    if path is None:
        return Check("cache", NOTE, "-", "no home folder: kernels are parsed anew each time")
    problem = _unsafe(path)
    if problem is None:
        return Check("cache", OK, str(path), "is used" if path.exists() else "not made yet")
    advice = f"chown and chmod 0700 {path}, or remove it"
    return Check("cache", PROBLEM, str(path), f"is not used: {problem}", advice)


def _unsafe(path: Path) -> str | None:
    """Why the cache would not be believed."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror
    if not stat.S_ISDIR(status.st_mode):
        return "it is no folder"
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to uid {status.st_uid}"
    if status.st_mode & 0o022:
        return "others may write to it"
    return None


def _from(error: VirtIntrospectError, check: str, status: str, subject: str) -> Check:
    return Check(check, status, subject, error.message, error.hint or None)
