"""Samples at short intervals, and what is made of the page cache in them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from virtintrospect.insight import sampling
from virtintrospect.insight.figures import PARTS
from virtintrospect.insight.history import Window
from virtintrospect.insight.sampling import CHEAP, Sampling

from .test_hints import MIB, figures, judge


def test_what_is_dear_is_taken_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def sample(_guest: Any, _target: Any, parts: Any = None) -> dict[str, Any]:
        taken.append(parts)
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return {}

    monkeypatch.setattr(sampling, "sample", sample)
    some = Sampling(share=0.0002)  # 0.02 seconds of work are enough for 100
    for _ in range(3):
        some.take(None)  # type: ignore[arg-type]
    assert taken == [None, CHEAP, CHEAP]
    assert set(CHEAP) < set(PARTS)
    often = Sampling(share=1e9)
    for _ in range(2):
        often.take(None)  # type: ignore[arg-type]
    assert taken[3:] == [None, None]


def test_samples_without_a_list_do_not_count_for_it() -> None:
    lists = [{"tasks": {"largest": [[1, "a", n]]}} for n in (10, 20)]
    cheap: dict[str, Any] = {}
    samples = [{"time": at} | more for at, more in enumerate([lists[0], cheap, cheap, lists[1]])]
    window = Window(samples)
    assert window.named("tasks", "largest", key=2, value=2) == {("1", "a"): [10, 20]}
    assert window.times("tasks", "largest") == [0.0, 3.0]


def test_cache_counts_as_needed_where_it_is_used_again() -> None:
    """1 GiB in use, 256 MiB on the active list, 1 GiB on the inactive one."""
    lists = {"active_file": 256 * MIB, "inactive_file": 1024 * MIB}

    def wanted(**cache: int) -> int:
        more = {"cache": cache} if cache else {}
        found = judge(*(figures(at, memory=lists) | more for at in (60, 0)))
        return (found["memory", "shrink"].recommended or 0) // MIB

    assert wanted() == 2535  # nobody has looked: all of it, and a tenth
    assert wanted(used_again=0, total=1280 * MIB) == 1127
    assert wanted(used_again=1280 * MIB, total=1280 * MIB) == 2535
    assert wanted(used_again=1280 * MIB, total=1280 * MIB, kept=64 * MIB) == 2464


def test_what_cpus_keep_free_is_not_needed() -> None:
    """1 GiB in use, as MemAvailable has it."""

    def wanted(*kept: int | None) -> int:
        caches = [{"used_again": 0, "total": 0} | ({} if n is None else {"on_cpus": n * MIB})
                  for n in kept]  # fmt: skip
        samples = [figures(60 - at) | {"cache": cache} for at, cache in enumerate(caches)]
        return (judge(*samples)["memory", "shrink"].recommended or 0) // MIB

    assert wanted(0, 0) == 1127
    assert wanted(40, 80) == 1083  # what they kept all the time, and a tenth less
    assert wanted(None, 80) == 1127  # nobody had looked
    assert wanted(1 << 20, 1 << 20) == 564  # no more than an eighth of 4 GiB


def test_cache_that_was_used_once_can_be_had_back() -> None:
    cache = {"used_again": 256 * MIB, "total": 1024 * MIB}
    hint = judge(*(figures(at) | {"cache": cache} for at in (60, 0)))["memory", "reclaim"]
    assert hint.current == 768 * MIB
    assert ("memory", "reclaim") not in judge(figures(60), figures(0))
