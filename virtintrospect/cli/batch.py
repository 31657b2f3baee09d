"""``batch``: many commands in one process, for programs."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
from pathlib import Path

import click

from virtintrospect.cli.options import Settings, common, pass_settings
from virtintrospect.errors import UsageError

#: Characters of one line of input.
_LONGEST = 1 << 20


@click.command("batch")
@common
@pass_settings
def batch(_settings: Settings) -> None:
    """Run the commands that come in on standard input, one after the other.

    Each line is a JSON array of the words of one command line. Each is answered by a line with
    a JSON object: "rc" is the command's exit code, "out" what it printed, "err" what it said on
    standard error. Starting costs more than most commands; here it is paid once.

    \b
    echo '["-o", "json", "info", "web01"]' | virt-introspect batch
    """
    asked = sys.stdin
    gc.enable()  # this one is not short
    with Path("/dev/null").open() as nothing:
        sys.stdin = nothing
        try:
            while line := asked.readline(_LONGEST + 1):
                click.echo(json.dumps(_answer(_words(line))))
        finally:
            sys.stdin = asked


def _words(line: str) -> list[str]:
    try:
        words = json.loads(line) if len(line) <= _LONGEST else None
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"a line is no JSON array of words: {line[:60]!r}")
    return words


def _answer(words: list[str]) -> dict[str, int | str]:
    from virtintrospect.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(words, batch=True)
        except Exception as error:  # noqa: BLE001 - the next line is another command
            click.echo(f"virt-introspect: internal error: {error!r}", err=True)
            code = 1
    return {"rc": code, "out": out.getvalue(), "err": err.getvalue()}
