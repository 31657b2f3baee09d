"""The command line without any guest: usage, errors, exit codes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from virtintrospect.cli import main
from virtintrospect.cli.main import cli, run
from virtintrospect.cli.span import Span
from virtintrospect.errors import UsageError
from virtintrospect.insight.checks.asked import findings

COMMANDS = [
    "attach",
    "batch",
    "bpf",
    "cgroups",
    "check",
    "containers",
    "cpu",
    "crash",
    "detach",
    "dmesg",
    "dommemstat",
    "dump",
    "env",
    "files",
    "guestinfo",
    "hints",
    "hung",
    "info",
    "interfaces",
    "load",
    "logins",
    "map",
    "maps",
    "memory",
    "modules",
    "mount",
    "mounts",
    "namespaces",
    "neighbours",
    "nested",
    "pressure",
    "ps",
    "read",
    "registers",
    "routes",
    "runqueues",
    "search",
    "sessions",
    "slabs",
    "sockets",
    "stack",
    "symbols",
    "sysctl",
    "timers",
    "top",
    "translate",
    "types",
    "users",
    "vmstat",
    "write",
]


def fails(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) == 1
    return captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"virt-introspect {command} " in capsys.readouterr().out


def test_commands_are_those_of_the_contract() -> None:
    assert sorted(cli.commands) == sorted([*COMMANDS, "list", "completion", "hooks", "doctor"])


@pytest.mark.parametrize("arguments", [["ps"], ["nonsense"], ["ps", "x", "-o", "xml"], ["--nope"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_such_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing.img" in fails(["ps", str(tmp_path / "nothing.img")], 3, capsys)


def test_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "directory" in fails(["ps", str(tmp_path)], 4, capsys)


def test_image_that_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text"
    path.write_text("hello\n" * 100)
    fails(["info", str(path)], 4, capsys)


def test_image_without_a_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    line = fails(["info", str(path)], 5, capsys)
    assert "no Linux kernel" in line


def test_libvirt_is_not_running(capsys: pytest.CaptureFixture[str]) -> None:
    uri = "qemu+unix:///system?socket=/nowhere/libvirt-sock"
    line = fails(["-c", uri, "ps", "web01"], 4, capsys)
    assert "/nowhere/libvirt-sock" in line


def test_bad_url(capsys: pytest.CaptureFixture[str]) -> None:
    fails(["ps", "file://other-host/image"], 2, capsys)


def test_qmp_socket_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no QMP socket /no/such" in fails(["ps", "qmp:/no/such"], 3, capsys)


def test_bad_column_is_told_with_the_good_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Usage is checked before the guest is looked at: no such file either.
    line = fails(["ps", str(tmp_path / "nothing.img"), "--columns", "nmae"], 2, capsys)
    assert "nmae" in line
    assert "resident_size" in line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_VIRT_INTROSPECT_COMPLETE" in capsys.readouterr().out


def test_error_lines_escape_what_they_quote(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in fails(["ps", "/nowhere/\x1b[31m"], 3, capsys)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_what_an_encoding_lacks_is_escaped(errors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, "ascii", errors))
    monkeypatch.setattr("sys.stderr", None)
    main._prepare_streams()
    sys.stdout.write("h\u00e9\n")
    sys.stdout.flush()
    assert raw.getvalue() == b"h\\xe9\n"
    sys.stderr.write("to nobody")
    sys.stderr.close()


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(closed: str) -> None:
    """They are empty, and no file of the command's gets their numbers."""
    program = str(Path(sys.executable).with_name("virt-introspect"))
    shell = ["sh", "-c", f'exec "$0" batch {closed}', program]
    done = subprocess.run(shell, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_full_disk_is_one_line(at_once: bool) -> None:
    """Whether it is met while the command prints, or when it is done."""
    words = ["check", "--list", *(["-o", "json"] if at_once else [])]
    buffering = {"PYTHONUNBUFFERED": "1"} if at_once else {}
    code = f"from virtintrospect.cli.main import main; import sys; sys.argv[1:] = {words}; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False, env=os.environ | buffering,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["read", "./x", "0", "-n", "99999999999999"], "at most 268435456 bytes"),
        (["dump", "./x", ""], "FILE has no name"),
        (["hung", "./x", "--for", "soon"], "'soon' is no length of time"),
        (["hints", "./x", "--for", "0s"], "'0s' is no length of time"),
    ],
)
def test_values_that_make_no_sense(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(arguments, 2, capsys)


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90", 90), ("2.5s", 2.5), ("15m", 900)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert Span(zero=True).convert(text, None, None) == seconds


def test_a_newest_kernel_that_is_none() -> None:
    """Nothing would be older than that, and nothing found."""
    with pytest.raises(UsageError, match="'newest' is no release"):
        findings(cast(Any, None), newest_kernel="newest")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ps", "--wrong", "x"], "No such option '--wrong'; see virt-introspect ps --help"),
        (["pss"], "No such command 'pss'. Did you mean 'ps'?; see virt-introspect --help"),
        (["ps"], "Missing argument 'TARGET'; see virt-introspect ps --help"),
        (["completion"], "Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish; see "),
    ],
)
def test_wrong_words_are_told_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_a_group_without_a_command_shows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hooks"]) == 2
    assert capsys.readouterr().err.count("\n") > 5
