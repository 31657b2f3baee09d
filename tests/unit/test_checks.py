"""Rules as data, their page, and the engine that asks a live guest three times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtintrospect.cli.main import run
from virtintrospect.cli.rulespage import render
from virtintrospect.errors import (
    CorruptDataError,
    NoSuchTargetError,
    OutputError,
    TargetGoneError,
    UsageError,
    VirtIntrospectError,
)
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.insight import checks
from virtintrospect.insight.checks import RULES, baseline, kernel
from virtintrospect.insight.checks.allowed import allowed, read_allowed
from virtintrospect.insight.checks.context import Context, Options
from virtintrospect.insight.checks.probes import Ranges
from virtintrospect.insight.checks.rule import Hit, Rule
from virtintrospect.model.finding import SEVERITIES
from virtintrospect.symbols import kernelimage

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make rules`"


def test_rules_say_all_that_people_need() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.severity in SEVERITIES
        for text in (rule.title, rule.looks_at, rule.remedy, rule.false_positives, rule.blind):
            assert len(text) > 10, rule.id
        assert rule.reference.startswith("T1"), rule.id


def test_list_needs_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--list", "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["rule"] for row in listed] == [rule.id for rule in RULES]
    assert all(row["false_positives"] for row in listed)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--rule", "nonsense", "--list"], ["x", "--listening-allow", "ssh"],
     ["x", "--baseline", "/dev/null"], ["x", "--severity", "awful"],
     ["x", "--save-baseline", "."]],
)  # fmt: skip
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", *arguments]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_baseline_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "x", "--baseline", "/no/such/file"]) == 3
    assert "/no/such/file" in capsys.readouterr().err


# -- the engine -----------------------------------------------------------------------------


class Straw:
    """As much of a guest as the engine wants."""

    live = True

    def __init__(self) -> None:
        self.memory = self
        self.expired = 0

    def expire(self) -> None:
        self.expired += 1


class Fickle:
    """A rule's function that sees something else each time."""

    def __init__(self, *looks: list[str] | Exception) -> None:
        self.looks = list(looks)

    def __call__(self, _context: Context) -> Iterator[Hit]:
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            yield Hit(b"first", b"is seen", {})
            raise look
        for subject in look:
            yield Hit(subject.encode(), b"is there", {"a": 1, "text": b"two words"})


def rule(check: Any) -> Rule:
    return Rule("r", "high", "t", "l", "do it", "f", "b", "T1", check)


def look(monkeypatch: pytest.MonkeyPatch, check: Fickle, *, live: bool) -> tuple[Any, Context]:
    monkeypatch.setattr(checks, "_AGAIN", (0.0, 0.0))
    guest: Any = Straw()
    guest.live = live
    context = Context(guest, Options(), Budget())
    return checks._confirmed(rule(check), context), context


def test_a_live_guest_is_asked_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    fickle = Fickle(["a", "b", "c"], ["b", "c", "d"], ["c", "a"])
    hits, context = look(monkeypatch, fickle, live=True)
    assert [hit.subject for hit in hits] == [b"c"]
    assert context.guest.memory.expired == 2  # type: ignore[attr-defined]


def test_a_new_name_does_not_hide_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fickle = Fickle(["process 7 (a)"], ["process 7 (b)"], ["process 7 (c) (d)"])
    hits, _ = look(monkeypatch, fickle, live=True)
    assert [hit.subject for hit in hits] == [b"process 7 (a)"]


def test_a_look_that_fails_refutes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    error = CorruptDataError("a cycle", 0x10)
    hits, context = look(monkeypatch, Fickle(["a"], *[error] * 3), live=True)
    assert [hit.subject for hit in hits] == [b"a"]
    assert "r: what it found could not be looked at again" in context.notes
    hits, context = look(monkeypatch, Fickle(["a", "b"], error, ["b"], ["b"]), live=True)
    assert ([hit.subject for hit in hits], context.notes) == ([b"b"], [])


def test_no_look_begins_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_AGAIN", (0.0, 0.0))
    fickle = Fickle(["a"], [])
    guest: Any = Straw()
    context = Context(guest, Options(), Budget(seconds=-1))
    assert [hit.subject for hit in checks._confirmed(rule(fickle), context)] == [b"a"]
    assert (guest.expired, len(fickle.looks)) == (0, 1)
    assert "r: what it found could not be looked at again" in context.notes


def test_a_number_that_makes_no_sense_ends_no_other_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OverflowError("too large"), ValueError("negative"), ZeroDivisionError()):
        _, context = look(monkeypatch, Fickle(error), live=False)
        assert "makes no sense" in context.notes[0]


def test_an_image_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, _ = look(monkeypatch, Fickle(["a", "a", "b"]), live=False)
    assert [hit.subject for hit in hits] == [b"a", b"b"]


def test_a_rule_that_fails_is_not_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, context = look(monkeypatch, Fickle(CorruptDataError("a cycle", 0x10)), live=False)
    assert [hit.subject for hit in hits] == [b"first"]
    assert context.notes == ["r: a cycle (at 0x10)"]
    with pytest.raises(TargetGoneError):
        look(monkeypatch, Fickle(TargetGoneError("it ended")), live=False)


def test_findings() -> None:
    found = rule(None).finding(Hit(b"it", b"is", {"a": 1, "text": b"two words"}, "low"))
    assert (found.severity, found.evidence, found.remedy) == (
        "low",
        rb"a=1 text=two\x20words",
        "do it",
    )
    assert rule(None).finding(Hit(b"it", b"is", {})).severity == "high"


# -- what rules compare with ----------------------------------------------------------------


def test_what_may_listen(tmp_path: Path) -> None:
    assert allowed("tcp:22").fits("tcp", "::", 22)
    assert not allowed("tcp:22").fits("udp", "::", 22)
    assert allowed("udp:[::1]:1-9").fits("udp", "::1", 5)
    assert not allowed("udp:[::1]:1-9").fits("udp", "::", 5)
    assert allowed("tcp:*").fits("tcp", "0.0.0.0", 65535)
    file = tmp_path / "list"
    file.write_text("# ours\ntcp:22 # ssh\n\nudp:127.0.0.1:323\n")
    assert list(map(str, read_allowed([str(file), "tcp:1"]))) == [
        "tcp:22-22", "udp:127.0.0.1:323-323", "tcp:1-1",
    ]  # fmt: skip
    with pytest.raises(NoSuchTargetError):
        read_allowed(["./nothing"])
    assert allowed("udp:[0:0::1]:323").fits("udp", "::1", 323)
    assert allowed("tcp:[::FFFF:1.2.3.4]:1").fits("tcp", "::ffff:1.2.3.4", 1)
    for text in ("tcp:65536", "tcp:80-22", "tcp:999.1.1.1:22", "tcp:[1.2.3.4]:22"):
        with pytest.raises(UsageError, match="names no listening socket"):
            allowed(text)
    file.write_text("#" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="too large"):
        read_allowed([str(file)])


@settings(deadline=None)
@given(st.text(max_size=40))
def test_what_may_listen_never_crashes(text: str) -> None:
    try:
        found = allowed(text)
    except UsageError:
        return
    assert allowed(str(found)) == found


@pytest.mark.parametrize(
    ("older", "newer"),
    [("6.1.0-57-cloud-amd64", "6.1.0-58-amd64"), ("5.10.0-46-amd64", "6.1.0-1-amd64"),
     ("6.12.9+deb13-amd64", "6.12.117+deb13-amd64"), ("6.1", "6.1.1"), ("", "1")],
)  # fmt: skip
def test_releases(older: str, newer: str) -> None:
    assert kernel._numbers(older) < kernel._numbers(newer)


def test_baselines(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    good = {"format": baseline.FORMAT, "version": 1, "modules": ["a"], "release": "6.1"}
    baseline.save(path, good)
    assert baseline.load(path) == good
    assert [one.name for one in tmp_path.iterdir()] == ["b.json"]
    bad: Any
    for bad in ([], {}, good | {"version": 2}, good | {"modules": "a"}, good | {"modules": [1]},
                good | {"release": None}):  # fmt: skip
        path.write_text(json.dumps(bad))
        with pytest.raises(UsageError):
            baseline.load(path)
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(UsageError):
        baseline.load(path)
    with pytest.raises(OutputError):
        baseline.save(tmp_path / "no" / "b.json", good)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_makes_no_sense_costs_its_part_of_a_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(_context: Context) -> str:
        raise OverflowError("too large")

    monkeypatch.setattr(baseline, "_TAKEN", {"release": odd, "build_id": lambda _: "0a"})
    guest: Any = Straw()
    context = Context(guest, Options(), Budget())
    assert baseline.take(context) == {
        "format": baseline.FORMAT,
        "version": 1,
        "build_id": "0a",
    }
    assert "drift: release: what the guest says makes no sense" in context.notes[0]


@settings(deadline=None)
@given(data=st.binary(max_size=600), elf=st.booleans())
def test_damaged_kernel_images(
    tmp_path_factory: pytest.TempPathFactory, *, data: bytes, elf: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "kernel"
    setup = bytearray(0x250)
    setup[0x202:0x206] = b"HdrS"
    setup[0x248:0x24C] = b"\0\0\0\0"
    setup[0x24C:0x250] = len(data).to_bytes(4, "little")
    head = b"\x7fELF\x02\x01" if elf else bytes(setup).ljust(512 * 2, b"\0")
    path.write_bytes(head + data)
    try:
        kernelimage.load(path)
    except VirtIntrospectError:
        return


def test_kernel_image_with_headers_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"\x7fELF\x02\x01".ljust(32, b"\0") + b"\xff" * 32)
    with pytest.raises(UsageError, match="no kernel image"):
        kernelimage.load(path)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12), st.integers(0, 64))
def test_ranges(ranges: list[tuple[int, int]], address: int) -> None:
    """As if each were compared: they may overlap, lie in each other, or be empty."""
    assert (address in Ranges(ranges)) == any(a <= address < b for a, b in ranges)
