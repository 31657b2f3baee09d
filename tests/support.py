"""What works where: every command on a target, and docs/support.md, which has it all.

A test opens a target and calls :func:`check` with the name of its column; with
``SUPPORT_RECORD=1`` (``make support``) the column is written instead of compared.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import click

from virtintrospect import session as sessions
from virtintrospect.cli.imports import TargetOrCommand
from virtintrospect.cli.main import cli, run
from virtintrospect.driver import READ_ONLY, Access
from virtintrospect.session import Session

PAGE = Path(__file__).parents[1] / "docs" / "support.md"
RECORD = os.environ.get("SUPPORT_RECORD", "") not in ("", "0")
#: Commands to look at, when not all: for a new one.
ONLY = os.environ.get("SUPPORT_ONLY", "").split()

YES = "yes"
#: What a command is given behind its TARGET; ``FILE`` is a new file in a folder for that.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "maps": ("1",), "env": ("1",), "stack": ("1",), "symbols": ("init_task",),
    "types": ("task_struct",), "translate": ("linux_banner",), "read": ("linux_banner",),
    "search": ("Linux version", "--limit", "3"), "sysctl": ("kernel.ostype",),
    "dump": ("FILE", "--no-hash"), "hints": ("--for", "1s"),
    "check": ("--severity", "high"),
    # The same bytes that are there.
    "write": ("linux_banner", "--text", "Linux", "--force", "--allow-write"),
    "map": ("--plot", "FILE.png"),
}  # fmt: skip
#: These answer for the daemon, or go on until they are ended.
EXCLUDED = {"attach", "detach", "mount", "top"}

Column = Mapping[str, str]

_HEAD = """# What works where

Written by the tests (`make support`): each command is run on each target, and the tests compare
what comes out with this page. A number is the reason, below the table.

"""


def commands() -> list[str]:
    """Every command that takes a TARGET."""
    return sorted(
        name
        for name in cli.commands
        if name not in EXCLUDED and any(p.name == "target" for p in _parameters(name))
    )


def _parameters(name: str) -> list[click.Parameter]:
    """What a command takes; of one that has subcommands, what its default takes."""
    command = cli.commands[name]
    return (command.default if isinstance(command, TargetOrCommand) else command).params


def unanswered() -> list[str]:
    """Commands that need more than a TARGET, and have nothing in :data:`ARGUMENTS`."""
    return [
        name
        for name in commands()
        if name not in ARGUMENTS
        and any(
            isinstance(p, click.Argument) and p.required and p.name != "target"
            for p in _parameters(name)
        )
    ]


def look(target: str, options: tuple[str, ...], folder: Path) -> dict[str, str]:
    """Run every command on a target: :data:`YES`, or why not.

    :param options: of every command, e.g. ``--transport``.
    """
    found = {}
    with _kept_open():
        for name in ONLY or commands():
            files = [a.replace("FILE", str(folder / name)) for a in ARGUMENTS.get(name, ())]
            words = [name, "--no-daemon", target, *files, *options]
            if name == "write" and Path(target).is_file():
                words.append("--in-place")
            out, complaint = io.TextIOWrapper(io.BytesIO()), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaint):
                code = run(words)
            done = code in (0, 6)  # the second: done, and something was found
            said = complaint.getvalue().replace(f"{folder}/", "")
            found[name] = YES if done else _reason(said, target, code)
            for file in folder.iterdir():
                file.unlink()
    return found


def check(column: str, target: str, folder: Path, *, options: tuple[str, ...] = ()) -> None:
    """Make sure that a target can do what docs/support.md says; or write it there.

    :param column: the target's name there; :data:`tests.guests.test_support.KINDS` lists them.
    :param folder: an empty one, for what commands write.
    """
    ours = look(target, options, folder)
    if RECORD:
        record(column, ours)
        return
    recorded = parse(PAGE.read_text(encoding="utf-8"))
    assert column in recorded, f"docs/support.md has no column {column!r}: run `make support`"
    expected = recorded[column]
    different = {
        name: f"{outcome}, recorded: {expected.get(name)}"
        for name, outcome in ours.items()
        if expected.get(name) != outcome
    }
    assert different == {}, f"run `make support` if this is meant: {different}"


def record(column: str, ours: Column) -> None:
    """Write a column into docs/support.md; with :data:`ONLY` its other cells stay."""
    recorded = parse(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    both = {**(recorded.get(column, {}) if ONLY else {}), **ours}
    PAGE.write_text(render({**recorded, column: both}), encoding="utf-8")


def _reason(text: str, target: str, code: int) -> str:
    """The error's one line, without its advice and what differs from run to run."""
    lines = [line for line in text.splitlines() if line.startswith("virt-introspect: ")]
    if not lines:
        return f"exit code {code}"
    line = lines[-1].removeprefix("virt-introspect: ").partition("; ")[0]
    return re.sub(r"0x[0-9a-f]+", "0x…", line.replace(target, "TARGET")).replace("|", "/")


@contextlib.contextmanager
def _kept_open() -> Iterator[None]:
    """Commands share a session, as long as they open the target in the same way."""
    opened: dict[Any, Session] = {}
    real = sessions.open_session

    def open_session(
        target: str, uri: str | None = None, store: Any = None, access: Access = READ_ONLY
    ) -> Session:
        key = target, access
        if key not in opened:
            while opened:  # some ways exclude each other
                Session.close(opened.popitem()[1])
            session = opened[key] = real(target, uri, store, access)
            session.close = lambda: None  # type: ignore[method-assign]
        return opened[key]

    with mock.patch.object(sessions, "open_session", open_session):
        try:
            yield
        finally:
            for session in opened.values():
                Session.close(session)


# -- the page -------------------------------------------------------------------------------


def render(columns: Mapping[str, Column]) -> str:
    """The page of these columns."""
    from tests.guests.test_support import KINDS

    order = {kind.name: number for number, kind in enumerate(KINDS)}
    names = sorted(columns, key=lambda name: (order.get(name, len(order)), name))
    reasons: list[str] = []

    def cell(outcome: str | None) -> str:
        if outcome is None or outcome == YES:
            return "" if outcome is None else YES
        if outcome not in reasons:
            reasons.append(outcome)
        return f"[{reasons.index(outcome) + 1}]"

    rows = sorted({command for column in columns.values() for command in column})
    lines = ["| command | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        cells = [cell(columns[name].get(row)) for name in names]
        lines.append(f"| `{row}` | " + " | ".join(cells) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    what = [f"* **{kind.name}**: {kind.what}." for kind in KINDS if kind.name in columns]
    parts = [*lines, "", "## Reasons", "", *notes, "", "## Targets", "", *what]
    return _HEAD + "\n".join(parts) + "\n"


def parse(text: str) -> dict[str, dict[str, str]]:
    """The columns of a page."""
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.M))
    columns: dict[str, dict[str, str]] = {name: {} for name in table[0][1:]} if table else {}
    for command, *cells in table[1:]:
        for name, cell in zip(columns, cells, strict=True):
            if cell:
                columns[name][command.strip("`")] = reasons.get(cell.strip("[]"), cell)
    return columns
