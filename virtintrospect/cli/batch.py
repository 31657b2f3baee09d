"""``batch``: many commands in one process, for programs."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virtintrospect.cli.options import Settings, common, pass_settings
from virtintrospect.errors import UsageError

if TYPE_CHECKING:
    from virtintrospect.cli.kept import Kept

#: Characters of one line of input.
_LONGEST = 1 << 20


@click.command("batch")
@common
@pass_settings
def batch(_settings: Settings) -> None:
    """Run the commands that come in on standard input, one after the other.

    Each line is a JSON array of the words of one command line. Each is answered by a line with
    a JSON object: "rc" is the command's exit code, "out" what it printed, "err" what it said on
    standard error, "error" the kind of error that it ended with, if any. Starting costs more than
    most commands; here it is paid once, and so is recognising a guest.

    \b
    echo '["-o", "json", "info", "web01"]' | virt-introspect batch
    """
    from virtintrospect.cli.kept import Kept

    asked, kept = sys.stdin, Kept()
    if isinstance(asked, io.TextIOWrapper):
        asked.reconfigure(errors="surrogateescape")  # names of files are bytes
    gc.enable()  # this one is not short
    with Path("/dev/null").open() as nothing:
        sys.stdin = nothing
        try:
            while line := asked.readline(_LONGEST + 1):
                click.echo(json.dumps(_answer(_words(line), kept)))
        finally:
            sys.stdin = asked
            kept.close()


def _words(line: str) -> list[str]:
    try:
        words = json.loads(line) if len(line) <= _LONGEST else None
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"a line is no JSON array of words: {line[:60]!r}")
    return words


def _answer(words: list[str], kept: Kept) -> dict[str, int | str]:
    from virtintrospect.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    settings = Settings()
    settings.kept = kept
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), kept.command():
        try:
            code = run(words, settings)
        except click.Abort:
            raise
        except Exception as error:  # noqa: BLE001 - the next line is another command
            click.echo(f"virt-introspect: internal error: {error!r}", err=True)
            code = 1
    answer: dict[str, int | str] = {"rc": code, "out": out.getvalue(), "err": err.getvalue()}
    if settings.error is not None:
        answer["error"] = type(settings.error).__name__
    return answer
