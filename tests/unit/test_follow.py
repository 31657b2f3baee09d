"""A log that is followed: reboots, losses and errors, told by a guest of straw."""

from __future__ import annotations

import io
from itertools import islice
from typing import Any

import pytest

from virtintrospect.cli.output import Stream
from virtintrospect.errors import (
    CorruptDataError,
    FaultError,
    GuestNotRecognisedError,
    TargetGoneError,
    VirtIntrospectError,
)
from virtintrospect.insight.follow import LogBatch, follow_log
from virtintrospect.insight.tables import DMESG
from virtintrospect.model import LogRecord


class Straw:
    """A guest whose log holds the records ``first`` to ``last``."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def dmesg(self, after: int) -> list[LogRecord]:
        start = self.first if after > self.last else max(self.first, after + 1)
        return [LogRecord(0.0, "info", "kern", b"%d" % n, n) for n in range(start, self.last + 1)]


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


def follow(steps: list[Straw | Exception], count: int) -> list[LogBatch]:
    """The first batches; the last step goes on for ever."""
    left = list(steps)

    def current() -> Any:
        step = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(step, Exception):
            raise step
        return step

    return list(islice(follow_log(current, 0.5), count))


def numbers(batch: LogBatch) -> list[int]:
    return [record.sequence for record in batch.records]


def test_each_record_comes_once() -> None:
    straw = Straw(5, 9)
    found = follow_log(lambda: straw, 0.5)  # type: ignore[arg-type,return-value]
    assert numbers(next(found)) == [5, 6, 7, 8, 9]
    straw.last = 12
    assert next(found) == LogBatch(straw.dmesg(9), 0, rebooted=False)
    straw.first, straw.last = 20, 25
    batch = next(found)
    assert numbers(batch) == [20, 21, 22, 23, 24, 25]
    assert batch.lost == 7
    straw.first, straw.last = 0, 3  # a new kernel at the same place
    batch = next(found)
    assert (numbers(batch), batch.lost, batch.rebooted) == ([0, 1, 2, 3], 0, True)
    straw.last = 4
    assert next(found) == LogBatch(straw.dmesg(3), 0, rebooted=False)


def test_reboot_takes_its_time() -> None:
    gone = GuestNotRecognisedError("the guest reboots")
    old, new = Straw(0, 500), Straw(0, 2)
    found = follow([old, FaultError(1, 8), gone, gone, CorruptDataError("torn", 0), new], 2)
    assert numbers(found[0])[-1] == 500
    assert (numbers(found[1]), found[1].rebooted, found[1].lost) == ([0, 1, 2], True, 0)


@pytest.mark.parametrize(
    "error", [GuestNotRecognisedError("no kernel"), CorruptDataError("torn", 0), FaultError(1, 8)]
)
def test_what_is_wrong_from_the_start_is_an_error(error: VirtIntrospectError) -> None:
    with pytest.raises(type(error)):
        follow([error], 1)


def test_what_stays_wrong_is_an_error() -> None:
    with pytest.raises(CorruptDataError):
        follow([Straw(0, 1), CorruptDataError("the ring is damaged", 0)], 2)


def test_the_end_of_the_guest() -> None:
    with pytest.raises(TargetGoneError):
        follow([Straw(0, 1), TargetGoneError("it has ended")], 2)


@pytest.mark.parametrize("output", ["table", "csv", "jsonl"])
def test_stream_has_one_head(output: str) -> None:
    out = io.StringIO()
    stream = Stream(DMESG, output=output, columns="level,text", file=out)
    stream.write([{"level": "info", "text": b"one \x1b"}])
    stream.write([])
    stream.write([{"level": "err", "text": b"two"}, {"text": b"three"}])
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    if output == "jsonl":
        assert lines[0] == '{"level": "info", "text": "one \\\\x1b"}'
        assert len(lines) == 3
    else:
        separator = "," if output == "csv" else "  "
        assert [line.split(separator)[-1].strip() for line in lines] == [
            "text", r"one \x1b", "two", "three",
        ]  # fmt: skip
