"""Following hints: changes through libvirt's API, in steps, watched, logged, and undone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from virtintrospect.domainxml import current_memory
from virtintrospect.errors import OutputError, UsageError
from virtintrospect.insight.hints.facts import MIB, Facts, size
from virtintrospect.insight.history import Window

if TYPE_CHECKING:
    from virtintrospect.domain import Domain
    from virtintrospect.host import Host
    from virtintrospect.insight.figures import Sample
    from virtintrospect.insight.policy import Policy
    from virtintrospect.model import Hint

#: Where changes are noted unless the daemon's ``state_dir`` is another.
LOG = Path("/var/lib/virtintrospect/adjusted.jsonl")
#: Most bytes of the log that are read, and are kept: the older half goes when it is full.
_LARGEST = 4 << 20
_MEMINFO = Path("/proc/meminfo")
#: Bytes by which a balloon may be off from what was asked of it.
_SLACK = 64 << 20

Sampler = Callable[[], "Sample"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change that was made."""

    #: Seconds since the epoch.
    time: float
    uuid: str
    domain: str
    #: memory (bytes) or cpu (vCPUs).
    resource: str
    before: int
    after: int
    reason: str
    #: done, or stopped: what made it end early, and go back.
    outcome: str


def can_follow(hint: Hint) -> bool:
    """Whether a hint asks for what can be changed while the guest runs."""
    return (
        hint.resource in ("memory", "cpu")
        and hint.action in ("shrink", "grow")
        and hint.recommended is not None
        and (hint.virsh or "").endswith("--live")
    )


def follow(
    hint: Hint, domain: Domain, host: Host, policy: Policy, take: Sampler, log: Path = LOG
) -> Change:
    """Do what a hint asks for.

    Memory is taken in steps, the guest watched after each: where tasks begin to wait for memory,
    or evicted pages come back, the last step is undone and no other follows.

    :param host: a writable connection.
    :param take: takes a sample of the guest.
    :raises UsageError: the hint is none that can be followed, or a limit forbids it.
    :raises MemoryAccessError: libvirt refuses; what was done before that stays, and is logged.
    """
    if not can_follow(hint) or hint.recommended is None or hint.current is None:
        raise UsageError("that hint takes a restart, or a person", hint=hint.virsh or "")
    wanted = within_limits(hint, domain, policy)
    if hint.resource == "memory":
        _refuse_stale(hint, host.domain(domain.uuid))
        if wanted > hint.current:
            wanted = _within_group(wanted, hint.current, Facts(Window([take()]), policy, domain))
    change = Change(
        time.time(), domain.uuid, domain.name, hint.resource, hint.current, wanted, hint.reason, ""
    )
    # Noted before it is done: whoever is killed in between can be undone all the same.
    note(log, change)
    reached, outcome = hint.current, "stopped"  # unless it comes to its end
    try:
        if hint.resource == "cpu":
            host.set_vcpus(domain.uuid, wanted)
            reached = wanted
            outcome = "done"
        else:
            for state in _resize(hint.current, wanted, domain, host, policy, take):
                reached, outcome = state
    finally:
        final = Change(**(asdict(change) | {"after": reached, "outcome": outcome}))
        note(log, final)
    return final


def _resize(
    current: int, wanted: int, domain: Domain, host: Host, policy: Policy, take: Sampler
) -> Iterator[tuple[int, str]]:
    """Go from one size to another: after each step where it is, and how that would have ended.

    A guest that can no longer be watched gets its last step back, too.
    """
    before = current
    for size_now in _steps(current, wanted, policy):
        if other := _other(host, domain, before, *(() if before == current else (current,))):
            yield other, f"stopped: somebody else set its balloon to {size(other)}"
            return
        host.set_memory(domain.uuid, size_now >> 10)
        try:
            trouble = _watched(take, policy) if wanted < current else ""
        except BaseException:
            host.set_memory(domain.uuid, before >> 10)
            raise
        if trouble:
            host.set_memory(domain.uuid, before >> 10)
            yield before, f"stopped at {size(before)}: {trouble}"
            return
        before = size_now
        yield before, "done" if before == wanted else "stopped"


def _refuse_stale(hint: Hint, domain: Domain) -> None:
    """Make sure that the domain still has what a hint starts from.

    :raises UsageError: somebody has changed it meanwhile.
    """
    kib = current_memory(domain.xml)
    if kib is not None and abs((kib << 10) - (hint.current or 0)) > _SLACK:
        raise UsageError(
            f"domain {domain.name!r} has {size(kib << 10)} by now, not {size(hint.current or 0)}: "
            "somebody else changed it",
            hint="look again: virt-introspect hints",
        )


def _within_group(wanted: int, current: int, facts: Facts) -> int:
    """A size that a control group of this host allows, too.

    :raises UsageError: it allows no more than there is.
    """
    room = facts.memory_room
    if room is None or wanted <= room:
        return wanted
    if room <= current:
        group = facts.window.text("vmm", "limits", "memory_group")
        raise UsageError(
            f"control group {group} allows the domain's memory no more than {size(room)}",
            hint="virsh memtune --hard-limit",
        )
    return room


def _other(host: Host, domain: Domain, *asked: int) -> int:
    """What the balloon's target is, where it is none that was asked for; else 0.

    A guest that answers slowly is on its way from one size to the next.
    """
    kib = current_memory(host.domain(domain.uuid).xml)
    if kib is None or min(asked) - _SLACK <= kib << 10 <= max(asked) + _SLACK:
        return 0
    return kib << 10


def within_limits(hint: Hint, domain: Domain, policy: Policy) -> int:
    """What a hint asks for, kept within the domain's limits and what the host has left.

    :raises UsageError: nothing is left to be done within them.
    """
    current, wanted = hint.current or 0, hint.recommended or 0
    if hint.resource != "memory":
        return wanted
    least, most = policy.limits(domain.name)
    wanted = min(max(wanted, least), most)
    if wanted > current:
        spare = host_available() - policy.host_reserve_mib * MIB
        if wanted - current > spare:
            raise UsageError(
                f"the host has {size(max(0, spare))} to spare, {size(wanted - current)} are asked "
                f"for",
                hint="host_reserve_mib of the policy is kept free",
            )
    if (wanted < current) != (hint.action == "shrink") or wanted == current:
        raise UsageError(
            f"the limits of domain {domain.name!r} leave nothing to be done",
            hint="[limits] in /etc/virtintrospect/policies.toml",
        )
    return wanted


def host_available() -> int:
    """MemAvailable of this host, bytes."""
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _steps(current: int, wanted: int, policy: Policy) -> Iterator[int]:
    """Targets on the way: shrinking a bit at a time, growing at once."""
    if wanted < current:
        step = max(64 * MIB, int(current * policy.step_percent / 100))
        yield from range(current - step, wanted, -step)
    yield wanted


def _watched(take: Sampler, policy: Policy) -> str:
    """What is wrong with the guest after a step; empty where nothing is."""
    samples = [take()]
    end = time.monotonic() + policy.settle_seconds
    while time.monotonic() < end:
        time.sleep(min(1.0, policy.settle_seconds / 2))
        samples.append(take())
    window = Window(samples)
    stalled = window.stalled("memory", "some") or 0.0
    refaults = window.rate("events", "refault") or 0.0
    if stalled > policy.shrink_most_stalled_percent:
        return f"tasks wait for memory {stalled:.1f} % of the time"
    if refaults > policy.shrink_most_refaults:
        return f"{refaults:.0f} evicted pages a second come back"
    facts = Facts(window, policy)
    total = facts.window.last("memory", "memory_total") or 0.0
    left = facts.window.last("memory", "memory_available") or 0.0
    if total and 100 * left / total < policy.low_available_percent / 2:
        return f"only {size(left)} are available"
    return ""


def note(log: Path, change: Change) -> None:
    """Add a change to the log.

    :raises OutputError: that cannot be done; what cannot be undone is not to be done.
    """
    try:
        _append(log, json.dumps(asdict(change), separators=(",", ":")).encode() + b"\n")
    except OSError as error:
        raise OutputError(
            f"cannot write {log}: {error.strerror}",
            hint="changes are made by root, so that they can be undone",
        ) from error


def _append(log: Path, line: bytes) -> None:
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LARGEST:
        kept = log.read_bytes()[-_LARGEST // 2 :].partition(b"\n")[2]
        fresh = log.with_name(f".{log.name}")
        fresh.write_bytes(kept)
        fresh.chmod(0o600)
        fresh.replace(log)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def changes(log: Path, uuid: str) -> list[Change]:
    """The changes of a domain that have not been undone, oldest first.

    :raises OutputError: the log cannot be read.
    """
    found: list[Change] = []
    try:
        lines = log.read_bytes()[-_LARGEST:].splitlines()
    except FileNotFoundError:
        return found
    except OSError as error:
        raise OutputError(
            f"cannot read {log}: {error.strerror}", hint="changes are undone by root"
        ) from error
    for line in lines:
        try:
            change = Change(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if change.uuid != uuid:
            continue
        if change.outcome == "undone":
            found = [old for old in found if old.resource != change.resource]
        else:
            # What was noted before it was done, and after: one change.
            found = [old for old in found if old.time != change.time]
            found.append(change)
    return found


def to_undo(domain: Domain, log: Path = LOG) -> list[Change]:
    """What :func:`undo` would do; empty where nothing was changed."""
    first: dict[str, Change] = {}
    for change in changes(log, domain.uuid):
        first.setdefault(change.resource, change)
    return [
        Change(
            time.time(), domain.uuid, domain.name, resource, change.after, change.before,
            "undo", "undone",
        )
        for resource, change in first.items()
    ]  # fmt: skip


def undo(domain: Domain, host: Host, log: Path = LOG) -> list[Change]:
    """Bring a domain back to what it had before the first change that is not undone.

    :raises UsageError: nothing was changed.
    :raises MemoryAccessError: libvirt refuses.
    """
    back = to_undo(domain, log)
    if not back:
        raise UsageError(f"no change of domain {domain.name!r} is to be undone", hint=f"see {log}")
    for change in back:
        if change.resource == "memory":
            host.set_memory(domain.uuid, change.after >> 10)
        else:
            host.set_vcpus(domain.uuid, change.after)
        note(log, change)
    return back
