"""The command line without any guest: usage, errors, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtintrospect.cli.main import cli, run

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
