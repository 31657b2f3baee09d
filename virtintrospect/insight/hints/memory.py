"""Hints on memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from virtintrospect.insight.hints.cache import CacheNeed, cache_need
from virtintrospect.insight.hints.facts import MIB, Evidence, Facts, size
from virtintrospect.insight.history import figure
from virtintrospect.model import Hint

#: Seconds that a guest may take to fill its balloon: at least, and for each GiB.
_SETTLE, _SETTLE_A_GIB = 10, 10


class Need(NamedTuple):
    """What a guest needs, in bytes of its own MemTotal."""

    #: What it could not have done without, at the worst moment of the window.
    used: int
    #: Page cache that it uses again and again.
    cache: int
    #: What policy keeps free beyond that.
    reserve: int
    #: Lowest MemAvailable, and MemTotal of the last sample.
    trough: int
    total: int
    #: What ``cache`` comes from.
    files: CacheNeed

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.used + self.cache + self.reserve


def need(facts: Facts) -> Need | None:
    """What the guest needs, by all figures of the window.

    MemTotal less MemAvailable is what could not be had back without swapping: it counts clean
    page cache as free (si_mem_available() of mm/show_mem.c). Of that cache what was used more than
    once is needed, where it can be in use still. Some of it counts as used already
    (``cache.kept``): it must not count twice. What CPUs keep free for themselves counts as used,
    and is not. What is in swap had to leave.
    """
    window, policy = facts.window, facts.policy
    totals, used = window.values("memory", "memory_total"), _used(facts)
    if not used:
        return None
    swapped = (window.last("memory", "swap_total") or 0) - (window.last("memory", "swap_free") or 0)
    twice = min(window.values("cache", "kept"), default=0.0)
    most = max(0.0, max(used) - twice - _on_cpus(facts) + max(0.0, swapped))
    files = cache_need(facts, policy.keep_active_cache_percent)
    cache = files.needed
    reserve = (most + cache) * policy.reserve_percent / 100
    # What was low before the guest was given more says nothing of what it has now.
    available = min(window.sized.values("memory", "memory_available"), default=totals[-1])
    return Need(int(most), int(cache), int(reserve), int(available), int(totals[-1]), files)


def size_hints(facts: Facts) -> Iterator[Hint]:
    """The balloon's target, or more memory at the next start."""
    found = need(facts)
    if found is None:
        return
    current = facts.current or found.total
    # What the kernel took for itself before it counted MemTotal stays with it.
    wanted = found.bytes + max(0, current - found.total)
    trouble = list(_trouble(facts, found))
    if trouble:
        # A guest that lies can ask for anything: it gets no more than twice of what it has.
        wanted = min(max(wanted, current * 5 // 4), 2 * current)
        yield from _grow(facts, found, current, wanted, trouble)
    elif not facts.stale and facts.calm and not _rising(facts):
        yield from _shrink(facts, found, current, wanted)


def _trouble(facts: Facts, found: Need) -> Iterator[str]:
    """Why the guest needs more memory than it has now, since it has as much as now."""
    window, policy = facts.window.sized, facts.policy
    share = 100 * found.trough / max(1, found.total)
    if share < policy.low_available_percent:
        yield f"at its lowest {share:.1f} % of its memory was available"
    stalled = window.stalled("memory", "some")
    if stalled is not None and stalled > policy.high_stalled_percent:
        yield f"tasks waited for memory {stalled:.1f} % of the time"
    kills = window.growth("events", "oom_kills")
    if kills:
        yield f"the kernel killed {kills:.0f} processes for want of memory"
    out, back = window.rate("events", "swap_out"), window.rate("events", "swap_in")
    if min(out or 0, back or 0) > policy.thrash_pages:
        yield f"it swaps {out:.0f} pages a second out and {back:.0f} in"


def _rising(facts: Facts) -> bool:
    """Whether the guest is just taking more than it had: its end is not known then.

    Or whether a program does, which MemAvailable may show late: of what CPUs keep free for
    themselves it knows nothing (see :func:`_on_cpus`).
    """
    used, band = _used(facts), facts.policy.dead_band_percent / 100
    if len(facts.window) >= facts.policy.leak_samples and any(_growing(facts, band * max(used))):
        return True
    third = max(1, len(used) // 3)
    before, lately = max(used[:-third], default=used[-1]), max(used[-third:])
    return lately - before > band * before


def _used(facts: Facts) -> list[float]:
    """MemTotal less MemAvailable, in each sample."""
    window = facts.window
    pairs = zip(
        window.values("memory", "memory_total"),
        window.values("memory", "memory_available"),
        strict=False,
    )
    return [total - available for total, available in pairs]


def _on_cpus(facts: Facts) -> float:
    """Free pages that the CPUs kept for themselves all the time.

    No more than an eighth of all: zone_highsize() of mm/page_alloc.c.
    """
    totals = facts.window.values("memory", "memory_total")
    kept = [
        figure(taken, "cache", "on_cpus") or 0.0
        for taken in facts.window.samples
        if "cache" in taken
    ]
    return min(*kept, totals[-1] / 8) if kept and totals else 0.0


def _band(facts: Facts, current: int) -> float:
    policy = facts.policy
    return max(current * policy.dead_band_percent / 100, policy.dead_band_mib * MIB)


def _evidence(facts: Facts, found: Need) -> Evidence:
    window = facts.window
    return {
        "used_at_most": found.used,
        "cache_used_again_at_most": found.files.again,
        "cache_in_use_at_most": found.files.lately,
        "free_on_cpus_at_least": _on_cpus(facts),
        "reserve": found.reserve,
        "memory_available_at_least": found.trough,
        "memory_total": found.total,
        "psi_memory_some_percent": window.stalled("memory", "some"),
        "refaults_a_second": window.rate("events", "refault"),
        "swap_out_a_second": window.rate("events", "swap_out"),
        "oom_kills": window.growth("events", "oom_kills"),
        "host_memory_available": window.here.last("host", "memory_available"),
        "host_psi_memory_some_percent": window.here.host_stalled("memory", "some"),
    }


def _grow(
    facts: Facts, found: Need, current: int, wanted: int, trouble: list[str]
) -> Iterator[Hint]:
    wanted = _rounded(max(wanted, current + int(_band(facts, current))))
    maximum = facts.maximum
    beyond = maximum is not None and wanted > maximum
    kib = str(wanted >> 10)
    room = facts.memory_room
    if room is not None and wanted > room:
        yield _limited(facts, found, current, wanted, trouble)
        return
    restart = beyond or not facts.has_balloon
    yield facts.hint(
        "memory",
        "grow",
        f"{'; '.join(trouble)}: it needs about {size(wanted)}"
        + (", which takes a restart" if restart else ""),
        _evidence(facts, found),
        "memory available stays high and tasks do not wait, with the load it has now",
        current=current,
        recommended=wanted,
        virsh=facts.virsh("setmaxmem", kib, "--config")
        if restart
        else facts.virsh("setmem", kib, "--live"),
    )


def _limited(facts: Facts, found: Need, current: int, wanted: int, trouble: list[str]) -> Hint:
    """It needs more, and a control group of the host does not allow that: the kernel would kill."""
    here = facts.window.here
    limit, group = (
        here.last("vmm", "limits", "memory_max") or 0.0,
        here.text("vmm", "limits", "memory_group"),
    )
    raised = _rounded(wanted + max(0, int(limit) - (facts.memory_room or 0)))
    return facts.hint(
        "memory",
        "grow",
        f"{'; '.join(trouble)}: it needs about {size(wanted)}, but its control group {group} on "
        f"the host allows {size(limit)}: raise that first",
        _evidence(facts, found) | {"memory_max": limit, "memory_group": group},
        "memory available stays high and tasks do not wait, with the load it has now",
        current=current,
        recommended=wanted,
        virsh=facts.virsh("memtune", "--hard-limit", str(raised >> 10)),
    )


def _shrink(facts: Facts, found: Need, current: int, wanted: int) -> Iterator[Hint]:
    wanted = _rounded(max(wanted, facts.policy.smallest_mib * MIB))
    if current - wanted < _band(facts, current):
        return
    kib = str(wanted >> 10)
    yield facts.hint(
        "memory",
        "shrink",
        f"it never needed more than {size(found.used + found.cache)} of {size(current)}"
        + _no_longer(facts, found)
        + ("" if facts.has_balloon else "; it has no working balloon, so this takes a restart"),
        _evidence(facts, found),
        "pages that were evicted come back (workingset_refault), tasks wait for memory, or a load "
        "comes that this time did not show"
        + (" or that no counter shows (splice)" if found.files.idle else ""),
        current=current,
        recommended=wanted,
        virsh=facts.virsh("setmem", kib, "--live")
        if facts.has_balloon
        else facts.virsh("setmaxmem", kib, "--config"),
    )


def _no_longer(facts: Facts, found: Need) -> str:
    """What is said of page cache that is no longer used."""
    files = found.files
    if files.lately is None or not files.idle:
        return ""
    minutes = facts.policy.cache_horizon_seconds / 60
    return (
        f"; of {size(files.again)} of page cache that was used more than once, what it reads, "
        f"writes and maps in {minutes:.0f} minutes is {size(files.lately)} at most"
    )


def held_hints(facts: Facts) -> Iterator[Hint]:
    """Host memory that holds pages which the guest has free: counted page by page."""
    free, total = facts.window.last("memory", "memory_free"), facts.current
    held = facts.held
    if held is None or free is None or total is None or facts.reports_free_pages:
        return
    if held < facts.policy.held_mib * MIB:
        return
    # A tenth of what is free stays with the guest meanwhile.
    low = str(_rounded(int(total - 0.9 * free)) >> 10)
    down, up = (facts.virsh("setmem", kib, "--live") for kib in (low, str(total >> 10)))
    # `setmem` only sets the target: one that is set back at once takes nothing.
    seconds = _SETTLE + _SETTLE_A_GIB * -(-held // (1 << 30))
    yield facts.hint(
        "memory",
        "reclaim",
        f"the host holds {size(held)} that the guest has free",
        {"free_and_held": held, "memory_free": free},
        "the guest takes that memory again soon",
        current=held,
        recommended=0,
        virsh=f"{down} && sleep {seconds} && {up}" if facts.has_balloon and facts.domain else None,
    )


def leak_hints(facts: Facts) -> Iterator[Hint]:
    """What grows, and grows: a process or a slab cache."""
    policy = facts.policy
    if len(facts.window) < policy.leak_samples:
        return
    total = facts.window.last("memory", "memory_total") or 0.0
    least = max(policy.leak_mib * MIB, total * policy.leak_percent / 100)
    for kind, which, values, rising in _growing(facts, least):
        what = f"{kind} {which[-1]}" + (f" (pid {which[0]})" if kind == "process" else "")
        yield facts.hint(
            "memory",
            "watch",
            f"{what} grew by {size(values[-1] - values[0])} and goes on growing: a likely leak",
            {
                kind: which[-1],
                "pid": which[0] if kind == "process" else None,
                "first": int(values[0]),
                "last": int(values[-1]),
                "rising_steps_percent": rising,
            },
            "it stops growing, or gives memory back",
            current=int(values[-1]),
        )


def _growing(
    facts: Facts, least: float
) -> Iterator[tuple[str, tuple[Any, ...], list[float], float]]:
    """Processes and slab caches that grew by so many bytes, and grow on.

    :returns: of each its kind, what names it, its sizes, and the percent of steps upwards.
    """
    kinds = {
        "process": facts.window.named("tasks", "largest", key=2, value=2),
        "slab": facts.window.named("slabs", key=1, value=1),
    }
    for kind, series in kinds.items():
        for which, values in series.items():
            steps = [after >= before for before, after in itertools.pairwise(values)]
            if not steps:
                continue  # seen once: the dear figures are not in each sample
            rising = 100 * sum(steps) / len(steps)
            grown = values[-1] - values[0]
            often = rising >= facts.policy.leak_steps_percent
            if grown >= least and often and not _levelled(values):
                yield kind, which, values, rising


def _levelled(values: list[float]) -> bool:
    """Whether the last third no longer grew: it was only filling up."""
    third = max(2, len(values) // 3)
    recent = values[-third:]
    return recent[-1] - recent[0] < 0.1 * (values[-1] - values[0]) * (third - 1) / len(values)


def _rounded(count: int) -> int:
    """To whole MiB, upwards."""
    return -(-count // MIB) * MIB
