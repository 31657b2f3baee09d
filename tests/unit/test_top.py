"""``top`` without a guest: rates, curves, what it costs, and a terminal that is given back."""

from __future__ import annotations

import io
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from rich.console import Console

from virtintrospect.cli import toplive, topviews
from virtintrospect.cli.main import cli
from virtintrospect.cli.topviews import Guests, Look, paced
from virtintrospect.errors import UsageError, VirtIntrospectError
from virtintrospect.insight.top import GuestTop, Past, ProcessTop

MIB = 1 << 20


def test_a_curve_has_a_block_for_each_look() -> None:
    past = Past()
    assert past.spark(100, 5) == ""
    for value in (0, 50, 100, 1000, -3):
        past.add(value)
    assert past.spark(100, 9) == "▁▅██▁"
    assert past.spark(100, 2) == "█▁"
    assert past.spark(0, 2) == "▁▁"


def sample(at: float, busy: int, waited: int, **more: Any) -> dict[str, Any]:
    return {
        "time": at,
        "memory": {"memory_total": 1000 * MIB, "memory_available": 600 * MIB},
        "cpu": {"user": busy, "idle": 7 * busy, "cpus": 2},
        "load": {"running": 3, "blocked": 0},
        "pressure": {"memory_some": {"total": waited}},
    } | more


def looked(monkeypatch: pytest.MonkeyPatch, *samples: dict[str, Any]) -> list[dict[str, Any]]:
    taken = iter(samples)
    monkeypatch.setattr("virtintrospect.insight.top.Sampling.take", lambda *_: next(taken))
    watched = GuestTop()
    return [watched.look(cast(Any, None)) for _ in samples]


def test_rates_are_from_one_look_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = {"cache": {"used_again": 100 * MIB, "total": 1}}
    first, second, third = looked(
        monkeypatch,
        sample(10, 1000, 0, **cache),
        sample(12, 4000, 500_000),
        sample(14, 100, 0),  # it has rebooted
    )
    assert "cpu_percent" not in first
    assert second["cpu_percent"] == 150.0
    assert second["pressure_memory"] == 25.0
    assert second["memory_need"] == 500 * MIB  # the cache is looked at seldom
    assert second["running"] == 3
    assert "pressure_cpu" not in second
    assert not {"cpu_percent", "pressure_memory"} & third.keys()


def process(pid: int, used: int, start: int = 1) -> Any:
    return SimpleNamespace(
        pid=pid, start_time=start, user_time=used, system_time=0, name=b"x", state="S", threads=1,
        resident_size=pid, cmdline=None,
    )  # fmt: skip


def test_processes_by_what_they_took_since(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100, 2)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    watched = ProcessTop()
    watched.look([process(1, 500), process(2, 9000), process(3, 50_000)])
    monkeypatch.setattr("time.monotonic", lambda: 102.0)
    rows = watched.look([process(1, 1500), process(2, 9100), process(3, 60_000, start=2)])
    assert [row["pid"] for row in rows] == [1, 2, 3]
    assert [row.get("cpu_percent") for row in rows] == [50.0, 5.0, None]  # 3 is another by now
    assert watched.past(1) is not None
    assert watched.past(3) is None


def test_looks_that_are_dear_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topviews, "_MOST_SHARE", 0.5)

    def dear() -> list[Any]:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        return []

    looks = paced(dear, 0.001)
    began = time.monotonic()
    cheapest = min(next(looks).pause for _ in range(3))
    assert time.monotonic() - began >= 0.4  # three looks, and two pauses at least as long
    assert cheapest <= 0.2


ROWS: list[dict[str, Any]] = [
    {"domain": "web\x1b[31m", "state": "running", "cpus": 2, "cpu_percent": 199.0, "running": 4,
     "memory_total": 1 << 30, "memory_need": 1 << 29, "memory_available": 1 << 20,
     "pressure_cpu": 50.0, "pressure_memory": 3.0, "pressure_io": 0.0, "refaults": 7.0},
    {"domain": "[bold]x" * 20, "state": "paused", "error": "no kernel\x07 in sight " * 9},
]  # fmt: skip


@pytest.mark.parametrize("width", [20, 60, 80, 100, 132, 200])
def test_a_page_fits_the_terminal(width: int) -> None:
    view = Guests.__new__(Guests)
    view._open = {}
    console = Console(width=width, height=8, record=True, color_system=None, file=io.StringIO())
    console.print(toplive._page(view, Look(ROWS * 9, 1.25, 2.0), console))
    text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text.replace("\\x1b", "")
    assert "\x07" not in text
    if width >= 80:
        assert "199.0" in text
        assert "looking takes 1.2 % of a core" in text
        assert "16 more" in text


@pytest.mark.parametrize(
    "words", [["--once", "-n", "2"], ["-n", "0"], ["--interval", "0"], ["--nested", "inner"]]
)
def test_refusals(words: list[str]) -> None:
    done = CliRunner().invoke(cli, ["top", *words])
    assert done.exit_code == 2 or isinstance(done.exception, UsageError)


def test_each_look_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    written = []

    class View:
        def __init__(self, *_: object) -> None:
            pass

        def look(self) -> list[dict[str, Any]]:
            written.append(cast(Any, sys.stdout.buffer).getvalue())
            return [{"domain": f"d{next(looks)}", "state": "running"}]

    monkeypatch.setattr(topviews, "Guests", View)
    words = ["top", "-n", "2", "--interval", "0.1", "-o", "csv", "--columns", "domain"]
    assert CliRunner().invoke(cli, words).stdout.split() == ["domain", "d1", "d2"]
    assert [len(text.split()) for text in written] == [0, 0, 2]


@pytest.mark.parametrize("output", ["json", "jsonl", "csv", "table"])
def test_what_was_looked_at_is_shown_when_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    def looks(*_: Any) -> Any:
        for number in range(3):
            yield Look([{"domain": f"web{number}"}], 0.0, 0.0)
        raise KeyboardInterrupt

    view = SimpleNamespace(look=None, target=None)
    monkeypatch.setattr(topviews, "Guests", lambda *_: view)
    monkeypatch.setattr(topviews, "paced", looks)
    done = CliRunner().invoke(cli, ["-o", output, "top", "-n", "9"])
    assert done.exit_code == 0
    assert [name in done.stdout for name in ("web0", "web1", "web2")] == [False, True, True]
    if output == "json":
        assert len(json.loads(done.stdout)) == 2


def test_an_image_does_not_change(tmp_path: Any) -> None:
    image = tmp_path / "raw"
    image.write_bytes(bytes(1 << 20))
    done = CliRunner().invoke(cli, ["top", str(image), "--once"])
    assert isinstance(done.exception, VirtIntrospectError)


_PROGRAM = """
import sys
from virtintrospect.cli import toplive
from virtintrospect.cli.topviews import Guests, Look
view = Guests.__new__(Guests)
view._open = {}
toplive.show(view, iter(lambda: Look([{"domain": "a", "state": "running"}], 0.0, 60.0), None))
"""


@pytest.mark.parametrize("end", [b"q", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_given_back(end: bytes | signal.Signals) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    environment = dict(os.environ) | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment,
    )  # fmt: skip
    try:
        shown = b""
        while b"q ends" not in shown:
            shown += os.read(ours, 65536)
        assert b"\x1b[?1049h" in shown  # a screen of its own
        assert termios.tcgetattr(theirs)[3] & termios.ICANON == 0
        if isinstance(end, bytes):
            os.write(ours, end)
        else:
            child.send_signal(end)
        assert child.wait(60) == 0
        while b"\x1b[?1049l" not in shown:
            shown += os.read(ours, 65536)
        assert termios.tcgetattr(theirs)[3] == before[3]
    finally:
        child.kill()
        child.wait()
        os.close(ours)
        os.close(theirs)
