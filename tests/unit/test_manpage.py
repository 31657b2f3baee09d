"""The committed man page is the one that the commands' own help gives, and roff likes it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from virtintrospect.cli.main import cli
from virtintrospect.cli.manpage import render

PAGE = Path(__file__).parents[2] / "docs" / "virt-introspect.1"

CHECKERS = (
    ["groff", "-man", "-Tutf8", "-ww", "-z"],
    ["mandoc", "-T", "lint", "-W", "error"],
)


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(cli, "virt-introspect"), "run `make man`"


def test_every_command_and_option_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8").replace(r"\-", "-")
    for command in cli.commands.values():
        assert f".SS {command.name}\n" in text
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert all(rf"\fB{name}\fR" in text for name in parameter.opts)


def test_examples_stand_in_lines_of_their_own() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = lines.index(".EX")
    assert lines[first + 1].startswith(r"virt\-introspect ")
    assert not any(line.startswith(r"\eb") for line in lines)


@pytest.mark.parametrize("command", CHECKERS, ids=lambda command: str(command[0]))
def test_no_warnings(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([*command, str(PAGE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
