"""``batch``: many commands in one process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from virtintrospect.cli.kept import Kept
from virtintrospect.cli.main import cli, run

NOWHERE = ["-c", "qemu+unix:///system?socket=/nowhere/libvirt-sock"]


def answers(
    lines: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[dict[str, Any]]:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(x) + "\n" for x in lines)))
    assert run(["batch"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_line_is_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = [["--version"], ["nonsense"], [*NOWHERE, "ps", "web01"], ["ps", str(tmp_path)]]
    found = answers([*lines, ["--version"]], monkeypatch, capsys)
    assert [answer["rc"] for answer in found] == [0, 2, 4, 4, 0]
    assert found[0] == found[-1]
    assert found[0]["out"].startswith("virt-introspect, version ")
    assert "/nowhere/libvirt-sock" in found[2]["err"]
    assert len(found[2]["err"].splitlines()) == 1
    assert [answer.get("error") for answer in found[:3]] == [
        None,
        "UsageError",
        "MemoryAccessError",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["batch"],
        ["dump", "x", "-"],
        ["-o", "jsonl", "dmesg", "--follow", "x"],
        ["dmesg", "-o", "jsonl", "-f", "x"],
        ["read", "x", "0", "--raw"],
    ],
)
def test_what_has_no_end_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = answers([words], monkeypatch, capsys)
    assert (found["rc"], found["out"]) == (2, "")
    assert "not possible in a batch" in found["err"]


def test_a_domain_may_be_called_as_a_command_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = answers([[*NOWHERE, "info", "dump"]], monkeypatch, capsys)
    assert found["rc"] == 4


def test_a_mistake_of_ours_costs_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from virtintrospect.cli import batch, main

    def broken(_words: list[str], _settings: Any) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr(main, "run", broken)
    assert batch._answer(["list"], Kept())["rc"] == 1


@pytest.mark.parametrize("line", [{}, "ps", [1], [["ps"]], None])
def test_what_is_no_command_line_ends_it(
    line: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(line) + "\n"))
    assert run(["batch"]) == 2
    assert "JSON array of words" in capsys.readouterr().err


def test_a_command_does_not_read_the_next_line() -> None:
    """What asks for confirmation gets none: the input is the batch's own."""
    program = str(Path(sys.executable).with_name("virt-introspect"))
    lines = json.dumps([*NOWHERE, "hints", "web01", "--apply"]) + "\ny\n"
    done = subprocess.run([program, "batch"], input=lines, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert json.loads(done.stdout.splitlines()[0])["rc"] != 0
    assert done.returncode == 2


def test_a_name_that_is_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path is bytes, and a program may write it as it is."""
    raw = io.BytesIO(b'["ps", "./no\xff"]\n["--version"]\n')
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(raw, "utf-8"))
    assert run(["batch"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["rc"], second["rc"]) == (3, 0)
    assert "No such file" in first["err"]


def test_an_interrupt_ends_all_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.commands["list"], "callback", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO('["list"]\n["--version"]\n'))
    assert run(["batch"]) == 130
    assert "version" not in capsys.readouterr().out
