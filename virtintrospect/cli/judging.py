"""What ``hints`` looks up in a guest besides its figures, where they give a reason to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import VirtIntrospectError

if TYPE_CHECKING:
    import numpy.typing as npt

    from virtintrospect.insight.figures import Sample
    from virtintrospect.insight.hints import Facts, Identical
    from virtintrospect.insight.identical import Free
    from virtintrospect.insight.policy import Policy
    from virtintrospect.model.pages import PageOwners
    from virtintrospect.session import Session

#: Bytes of a huge page, and how much of one must be in use to be worth it.
_HUGE, _WHOLE = 2 << 20, 0.9
#: Whose timers are named.
_MOST_TIMERS = 3


def facts_of(
    session: Session, policy: Policy, samples: Sequence[Sample], same: Identical | None = None
) -> Facts:
    """All that a rule may look at.

    :param same: its pages that are the same as others; see :func:`identical`.
    """
    from virtintrospect.insight.hints import Facts
    from virtintrospect.insight.history import Window

    window = Window(samples)
    held = whole = None
    # All pages are looked at, 0.1 s of CPU for each GiB: only where there may be something.
    much = (window.last("memory", "memory_free") or 0) >= policy.held_mib << 20
    if much or _few_huge(window, policy):
        held, whole = pages(session)
    found = Facts(window, policy, session.domain, held if much else None, whole, same)
    return _with_timers(session, found)


def _few_huge(window: Any, policy: Policy) -> bool:
    """Whether the host has much of it, and little in huge pages."""
    resident = window.last("vmm", "resident") or 0.0
    huge = sum(window.last("vmm", name) or 0.0 for name in ("anon_huge", "shmem_huge", "hugetlb"))
    return bool(resident >= policy.huge_mib << 20 and huge <= resident * policy.huge_percent / 100)


def pages(session: Session) -> tuple[int | None, int | None]:
    """Bytes that the host has and the guest has free; and those in whole pieces of 2 MiB, in use.

    ``None`` where the host does not tell which pages it has, or the guest is too large.
    """
    from virtintrospect.driver import SupportsResidentSize

    if not isinstance(session.target, SupportsResidentSize):
        return None, None
    try:
        owners = session.page_owners()
        there = owners.within(session.memory.resident())
    except VirtIntrospectError:
        return None, None  # a guest too large for that, or of another kind
    free = owners.of("free", "free_percpu")
    return int((free & there).sum()) * owners.page_size, _whole(owners, there & ~free)


def _whole(owners: PageOwners, used: npt.NDArray[Any]) -> int:
    """Bytes of aligned pieces that are in use to nine tenths."""
    each = max(1, _HUGE // owners.page_size)
    used = used & (owners.kind != 0)
    pieces = used[: len(used) - len(used) % each].reshape(-1, each).sum(axis=1)
    return int((pieces >= _WHOLE * each).sum()) * _HUGE


def _with_timers(session: Session, facts: Facts) -> Facts:
    """Name whose timers wake the host, where they do so often."""
    import dataclasses

    from virtintrospect.insight.hints.cpu import busy_percent
    from virtintrospect.insight.hints.wakes import too_many

    busy = busy_percent(facts)
    found = None if busy is None else too_many(facts, busy)
    if found is None:
        return facts
    soon = 4 * found.cpus / max(1.0, found.timers)
    try:
        names = {row.pid: row.name for row in session.processes()}
        due = [
            timer
            for timer in session.timers()
            if timer.kind == "hrtimer" and timer.expires_in is not None and timer.expires_in < soon
        ]
    except VirtIntrospectError:
        return facts
    who = [
        f"{names.get(pid, b'').decode('utf-8', 'backslashreplace')} (pid {pid})"
        for timer in due
        for pid in timer.pids[:1]
    ]
    return dataclasses.replace(facts, timers=tuple(dict.fromkeys(who))[:_MOST_TIMERS])


def _free(session: Session) -> Free | None:
    """The pages that a guest has free; ``None`` where that is not known."""
    from virtintrospect.insight.identical import Free

    try:
        owners = session.page_owners()
    except VirtIntrospectError:
        return None
    return Free(owners.of("free", "free_percpu"), owners.page_size)


def identical(sessions: Sequence[Session], *, everything: bool = False) -> list[Identical | None]:
    """Of each guest, its pages that are the same as others; of guests of this host that run.

    :param everything: not only guests whose pages KSM could merge.
    """
    from virtintrospect.domainxml import mergeable
    from virtintrospect.driver import SupportsResidentSize
    from virtintrospect.insight.identical import identical_pages

    here = [
        number
        for number, session in enumerate(sessions)
        if session.target.live
        and isinstance(session.target, SupportsResidentSize)
        and (everything or (session.domain is not None and mergeable(session.domain.xml)))
    ]
    found: list[Identical | None] = [None] * len(sessions)
    free = [_free(sessions[number]) for number in here]
    results = identical_pages([sessions[number].memory for number in here], free)
    for number, result in zip(here, results, strict=True):
        found[number] = result
    return found
