"""The configuration: defaults, and mistakes that are told with line and reason."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from virtintrospect.daemon.config import Config, ConfigError, load, parse

from .running import PROGRAM

WHERE = Path("x.toml")


def test_nothing_gives_the_defaults() -> None:
    assert parse("", WHERE) == Config()
    assert Config().socket.users == ("root",)
    assert not Config().metrics.enabled
    assert not Config().metadata.publish


def test_values_of_each_kind() -> None:
    config = parse(
        '[daemon]\nworkers = 2\n[socket]\nusers = ["root", "1000"]\n'
        "[sessions]\npoll_seconds = 1\n[metrics]\nenabled = true\n",
        WHERE,
    )
    assert config.daemon.workers == 2
    assert config.socket.users == ("root", "1000")
    assert config.sessions.poll_seconds == 1
    assert config.metrics.enabled


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[daemon\n", 1, "Expected"),
        ("[daemon]\nworkers = 2\nworkers = 3\n", 3, "overwrite"),
        ("[deamon]\n", 1, "no section"),
        ("\n[daemon]\nworker = 3\n", 3, "no setting 'worker'"),
        ("[daemon]\nworkers = 0\n", 2, "from 1 to 64"),
        ("[daemon]\n\n# many\nworkers = 'many'\n", 4, "an integer"),
        ("[daemon]\nworkers = true\n", 2, "an integer"),
        ("[daemon]\nlog_level = 'loud'\n", 2, "one of debug"),
        ("[socket]\nusers = 'root'\n", 2, "a list of strings"),
        ("[socket]\nusers = [0]\n", 2, "a list of strings"),
        ("[metrics]\nenabled = 1\n", 2, "true or false"),
        ("[sessions]\npoll_seconds = nan\n", 2, "must be from"),
        ("daemon.workers = 100\n", 1, "from 1 to 64"),
        ("daemon = 3\n", 1, "a section"),
        ("[history]\ninterval_seconds = 'x'\n[triage]\nenabled = 3\n", 2, "a number"),
        ("a = " + "[" * 5000, 0, ""),
    ],
)
def test_mistakes(text: str, line: int, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, WHERE)
    assert reason in caught.value.message
    assert line in (0, caught.value.line)


def test_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "missing")
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)
    (tmp_path / "bytes").write_bytes(b"[daemon]\n\xff\n")
    with pytest.raises(ConfigError, match="bytes:2: not UTF-8"):
        load(tmp_path / "bytes")


def test_check_config_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[daemon]\nworkers = 0\n")
    done = subprocess.run(
        [*PROGRAM, "--check-config", "--config", str(path)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"virt-introspectd: {path}:2: workers must be from 1 to 64")
    assert len(done.stderr.splitlines()) == 1
    path.write_text("")
    subprocess.run([*PROGRAM, "--check-config", "--config", str(path)], check=True)


def test_every_setting_is_documented() -> None:
    text = Path("docs/operations.md").read_text()
    for section in dataclasses.fields(Config):
        part = text.partition(f"### [{section.name}]")[2].partition("\n### ")[0]
        named = set(re.findall(r"^\| `(\w+)`", part, re.MULTILINE))
        assert named == {item.name for item in dataclasses.fields(getattr(Config(), section.name))}
