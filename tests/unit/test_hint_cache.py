"""Whether page cache is still read: what is taken for it, and when nothing is said of it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux import filecache, filetouch
from virtintrospect.insight.hints import Facts
from virtintrospect.insight.hints.cache import cache_need
from virtintrospect.insight.history import Window
from virtintrospect.insight.policy import load_policy
from virtintrospect.model import CacheUse

from .test_hints import DOMAIN, MIB, figures, judge

#: A guest that has used 600 MiB of page cache more than once, 100 MiB of it not of files.
CACHE = {
    "total": 700 * MIB, "used_again": 600 * MIB, "files": 500 * MIB, "mapped": 20 * MIB,
    "touched": 0, "uncounted": [],
}  # fmt: skip


def samples(*caches: dict[str, Any] | None, step: float = 10.0) -> list[dict[str, Any]]:
    """Samples so many seconds apart; ``None``: one without a look at the cache."""
    last = len(caches) - 1
    return [
        figures((last - n) * step) | ({} if cache is None else {"cache": CACHE | cache})
        for n, cache in enumerate(caches)
    ]


def read(*mib: float) -> list[dict[str, Any]]:
    """What had been read at each look."""
    return [{"touched": int(one * MIB)} for one in mib]


def needed(taken: list[dict[str, Any]], policy: str = "balanced", keep: float = 100.0) -> float:
    return cache_need(Facts(Window(taken), load_policy(policy)), keep).needed / MIB


def test_what_nobody_reads_is_not_needed() -> None:
    """100 MiB that are not of files, and 20 that are mapped."""
    assert needed(samples(*read(*[7] * 7))) == 120


def test_what_is_read_slowly_is_needed() -> None:
    """5 MiB a second: in an hour far more than there is."""
    assert needed(samples(*read(*range(0, 350, 50)))) == 600


def test_little_that_is_read_counts_for_the_horizon() -> None:
    assert needed(samples(*read(0, 0, 1, 1, 2, 2, 3))) == 100 + 20 + 3 * 60
    assert needed(samples(*read(0, 0, 1, 1, 2, 2, 3)), "dense") == 100 + 20 + 3 * 10


def test_the_busiest_hour_counts() -> None:
    """A day, looked at each half an hour: most was read at its beginning."""
    day = [0, 200, 390, *[400] * 45]
    assert needed(samples(*read(*day), step=1800.0)) == 100 + 20 + 390
    late = [*[0] * 45, 10, 200, 250]
    assert needed(samples(*read(*late), step=1800.0)) == 100 + 20 + 240


def test_what_was_read_between_two_looks_that_are_far_apart() -> None:
    assert needed(samples(*read(0, 0, 300, 300), step=7200.0)) == 100 + 20 + 300


@pytest.mark.parametrize("sign", ["io_uring", "aio", "SIGCHLD", "nfsd", "loop"])
def test_flags_alone_count_where_readers_are_not_counted(sign: str) -> None:
    looks = read(*[7] * 7)
    looks[2]["uncounted"] = [sign]
    assert needed(samples(*looks)) == 600


def test_flags_alone_count_of_a_guest_that_is_paused() -> None:
    domain = dataclasses.replace(DOMAIN, state="paused")
    window = Window(samples(*read(*[7] * 7)))
    assert cache_need(Facts(window, load_policy(), domain)).needed == 600 * MIB
    assert cache_need(Facts(window, load_policy(), DOMAIN)).needed == 120 * MIB


def test_flags_alone_count_by_policy() -> None:
    assert needed(samples(*read(*[7] * 7)), "conservative") == 600


def test_nothing_is_said_by_less_than_a_minute() -> None:
    assert needed(samples(*read(*[7] * 7), step=9.0)) == 600
    assert needed(samples({}, step=100.0)) == 600


def test_nothing_is_said_where_the_newest_look_does_not_tell() -> None:
    """Tasks came and went too fast: who knows what they read."""
    looks = samples(*read(*[7] * 8))
    del looks[-1]["cache"]["touched"]
    assert needed(looks) == 600


def test_looks_that_do_not_tell_in_between_change_nothing() -> None:
    looks = samples(*read(0, 0, 1, 1, 2, 2, 3))
    del looks[3]["cache"]["touched"], looks[4]["cache"]["files"]
    assert needed(looks) == 100 + 20 + 3 * 60


def test_samples_without_a_look_do_not_count() -> None:
    assert needed(samples({}, None, None, {}, None, step=30.0)) == 120


def test_a_sum_that_falls_counts_as_nothing_read() -> None:
    assert needed(samples(*read(0, 500, 499, 499, 500, 500, 500))) == 600
    assert needed(samples(*read(500, 499, 499, 499, 499, 499, 499))) == 120


def test_what_was_mapped_for_a_while_is_needed() -> None:
    looks = [{}, {}, {"mapped": 333 * MIB}, {}, {}, {}, {}]
    assert needed(samples(*looks)) == 100 + 333


def test_half_of_what_was_used_counts_at_most() -> None:
    assert needed(samples(*read(*range(0, 350, 50))), keep=50.0) == 300
    assert needed(samples(*read(*[7] * 7)), keep=50.0) == 50 + 20


@pytest.mark.parametrize("odd", [{"touched": "x"}, {"mapped": None}, {"uncounted": "x"},
                                 {"uncounted": {}}, {"files": []}])  # fmt: skip
def test_odd_figures_do_no_harm(odd: dict[str, Any]) -> None:
    assert needed(samples(*[odd] * 7)) in (600, 120)


def test_what_the_hint_says() -> None:
    found = judge(*samples(*read(*[7] * 7)))
    hint = found["memory", "shrink"]
    assert hint.recommended == 1259 * MIB  # 1 GiB and 120 MiB, and a tenth
    assert hint.reason.endswith(
        "; of 600 MiB of page cache that was used more than once, what it reads, writes and maps "
        "in 60 minutes is 20 MiB at most"
    )
    assert f"cache_in_use_at_most={20 * MIB}" in hint.evidence
    assert f"cache_used_again_at_most={600 * MIB}" in hint.evidence
    assert "splice" in hint.refuted_by
    reclaim = found["memory", "reclaim"]
    assert reclaim.current == 580 * MIB
    assert "or are no longer read," in reclaim.reason
    used = judge(*samples(*read(*range(0, 350, 50))))
    assert "page cache" not in used["memory", "shrink"].reason
    assert ("memory", "reclaim") not in used


# -- what is counted in the guest -------------------------------------------------------------


class _Table:
    """A layout that gives what it is told."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns = columns

    def lists(self, *_: Any) -> dict[str, list[Any]]:
        return self.columns


def _sums(**task: Any) -> tuple[int, set[str]] | None:
    usual = {"rchar": 100, "wchar": 10, "syscr": 2, "syscw": 1, "flags": 0, "comm": b"x\0",
             "signal": 64, "io_uring": 0, "aio": None, "handler": 0, "handling": 0}  # fmt: skip
    ended = {"rchar": [5000], "wchar": [0], "syscr": [1], "syscw": [0]}
    tables = {
        "task_struct": _Table(**{name: [value] for name, value in (usual | task).items()}),
        "signal_struct": _Table(**ended),
    }
    guest = SimpleNamespace(layout=lambda name, *_, **__: tables[name], kernel=None, page_size=4096)
    return filetouch._sums(cast(Any, guest), [1])


def test_bytes_and_two_pages_a_call() -> None:
    assert _sums() == (5110 + 4 * 2 * 4096, set())


def test_a_task_that_cannot_be_read_leaves_no_sum() -> None:
    assert _sums(wchar=None) is None


@pytest.mark.parametrize(
    ("task", "signs"),
    [
        ({"io_uring": 64}, {"io_uring"}),
        ({"aio": 64}, {"aio"}),
        ({"handler": 1}, {"SIGCHLD"}),
        ({"handling": 2}, {"SIGCHLD"}),
        ({"flags": 0x200000, "handler": 1}, set()),  # nobody waits for kernel threads
        ({"flags": 0x200000, "comm": b"nfsd\0"}, {"nfsd"}),
        ({"flags": 0x200000, "comm": b"iscsi_trx\0"}, {"iscsi"}),
        ({"flags": 0x200000, "comm": b"loop7\0"}, {"loop"}),
        ({"comm": b"loop7\0"}, set()),
    ],
)
def test_who_is_not_counted(task: dict[str, Any], signs: set[str]) -> None:
    found = _sums(**task)
    assert found is not None
    assert found[1] == signs


@pytest.mark.parametrize(
    ("symbols", "value", "bytes_"),
    [
        ({"fault_around_pages": 64}, 16, 65536),
        ({"fault_around_bytes": 64}, 4096, 4096),
        ({"fault_around_bytes": 64}, 1 << 60, 2 << 20),  # a lie
        ({"fault_around_bytes": 64}, 0, 4096),
        ({"fault_around_bytes": 64}, None, 65536),
        ({}, 0, 65536),
    ],
)
def test_fault_around(
    monkeypatch: pytest.MonkeyPatch, symbols: dict[str, int], value: int | None, bytes_: int
) -> None:
    def number(*_: Any) -> int:
        if value is None:
            raise FaultError(64, 8)
        return value

    monkeypatch.setattr(filetouch, "number", number)
    guest = cast(Any, SimpleNamespace(page_size=4096, symbols=symbols))
    counters = cast(Any, SimpleNamespace(huge_page=512))
    assert filetouch._around(guest, counters) == bytes_


def test_only_files_that_somebody_reads_by_name() -> None:
    """A directory, a disk, what cannot be read, and a file of a file system that is not known."""
    import numpy as np

    modes = [0o100644, 0o040755, 0o060600, None, 0o100644]
    table = _Table(mode=modes, magic=[0xEF53, 0xEF53, 0x62646576, None, 0x3434])
    guest = cast(Any, SimpleNamespace(layout=lambda *_, **__: table, kernel=None))
    owners = np.array([8, 8, 16, 24, 32, 40], dtype=np.uint64)
    assert filecache._of_files(guest, owners) == 2


def test_the_record_has_what_older_ones_lack() -> None:
    assert CacheUse(1, 1, 1, 1, 1).files is None
