"""How much of its page cache a guest needs, and hints on what it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from virtintrospect.insight.hints.facts import MIB, Facts, size
from virtintrospect.insight.history import figure
from virtintrospect.model import Hint


class CacheNeed(NamedTuple):
    """Page cache in use; bytes."""

    #: What its flags say: used more than once, whenever that was.
    again: float
    #: What of files can be in use, by what was read, written and mapped; ``None``: not known.
    lately: float | None
    #: What counts as needed.
    needed: float

    @property
    def idle(self) -> bool:
        """Whether some of it was used more than once, and is no more."""
        return self.needed < self.again


def cache_need(facts: Facts, keep_percent: float = 100.0) -> CacheNeed:
    """What the guest needs of its page cache.

    :param keep_percent: of what was used more than once, how much counts at most.
    """
    again, keep = max(_used_again(facts), default=0.0), keep_percent / 100
    lately, pairs = _lately(facts), list(_pairs(facts, "used_again", "files"))
    if lately is None or not pairs:
        return CacheNeed(again, None, again * keep)
    files = max(value for _, value in pairs)
    others = max(max(0.0, used - value) for used, value in pairs)
    needed = others * keep + min(files * keep, lately)
    return CacheNeed(again, lately, min(again * keep, needed))


def _used_again(facts: Facts) -> list[float]:
    """Page cache that was used more than once; all of it where pages were not looked at.

    The kernel's active list does not tell: see :mod:`virtintrospect.guests.linux.filecache`.
    """
    window = facts.window
    known = window.values("cache", "used_again")
    if known:
        return known
    pairs = zip(
        window.values("memory", "active_file"),
        window.values("memory", "inactive_file"),
        strict=False,
    )
    return [active + inactive for active, inactive in pairs]


def _pairs(facts: Facts, *names: str) -> Iterator[tuple[float, ...]]:
    """Several figures of the cache, in each sample that has all of them."""
    for taken in facts.window.samples:
        values = [figure(taken, "cache", name) for name in names]
        known = tuple(value for value in values if value is not None)
        if len(known) == len(names):
            yield known


def _lately(facts: Facts) -> float | None:
    """Bytes of files that can be in use within the policy's horizon; ``None``: not known.

    What is mapped now, and what was read, written or mapped at the pace that the guest had in its
    busiest time. Not known where the time looked at is too short, where something uses files
    that is not counted, where the newest sample does not say, or of a guest that is paused.
    """
    policy, looked = facts.policy, [s for s in facts.window.samples if "cache" in s]
    horizon = policy.cache_horizon_seconds
    paused = facts.domain is not None and facts.domain.state == "paused"
    if paused or not looked or not horizon or any(uncounted(taken) for taken in looked):
        return None
    series = [
        (float(taken["time"]), total, mapped)
        for taken in looked
        if (total := figure(taken, "cache", "touched")) is not None
        and (mapped := figure(taken, "cache", "mapped")) is not None
        and figure(taken, "cache", "files") is not None
    ]
    if not series or series[-1][0] != looked[-1]["time"]:
        return None
    seconds = series[-1][0] - series[0][0]
    if seconds < max(1.0, policy.cache_watched_seconds):
        return None
    pace = _busiest([(at, total) for at, total, _ in series], horizon)
    return max(mapped for _, _, mapped in series) + pace


def _busiest(series: Sequence[tuple[float, float]], horizon: float) -> float:
    """Most growth of a counter in so many seconds; in proportion where the time is shorter.

    :param series: when, and the counter then; it may fall by accident, which counts as nothing.
    """
    times, sums = [series[0][0]], [0.0]
    for (_, before), (at, after) in pairwise(series):
        times.append(at)
        sums.append(sums[-1] + max(0.0, after - before))
    seconds = times[-1] - times[0]
    if seconds < horizon:
        return sums[-1] * horizon / seconds
    most, first = 0.0, 0
    for at, total in zip(times, sums, strict=True):
        while times[first + 1] <= at - horizon:
            first += 1
        if times[first] <= at - horizon:
            most = max(most, total - sums[first])
    return most


def uncounted(taken: dict[str, object]) -> list[str]:
    """What uses files in a guest without being counted, by one sample."""
    cache = taken.get("cache")
    names = cache.get("uncounted") if isinstance(cache, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def cache_hints(facts: Facts) -> Iterator[Hint]:
    """Clean page cache that nobody has used twice, or that nobody uses any more."""
    window = facts.window
    total, found = window.values("cache", "total"), cache_need(facts)
    if not total or not facts.calm:
        return
    once, unused = int(min(total) - found.again), int(min(total) - found.needed)
    dirty = window.last("memory", "dirty") or 0.0
    clean = int(unused - dirty)
    if clean < facts.policy.clean_cache_mib * MIB:
        return
    yield facts.hint(
        "memory",
        "reclaim",
        f"{size(clean)} of its page cache were read once"
        + (", or are no longer read," if found.idle else "")
        + " and are clean: a smaller balloon target takes them first",
        {
            "cache_used_once_at_least": once,
            "cache_unused_at_least": unused if found.idle else None,
            "dirty": dirty,
        },
        "files are read again that had not been read for long"
        if found.idle
        else "files are read again that had been read only once",
        current=clean,
        recommended=0,
    )
