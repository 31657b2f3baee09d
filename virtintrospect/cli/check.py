"""``check``: what should not be in a guest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from virtintrospect.cli.escape import printable
from virtintrospect.cli.options import (
    Settings,
    common,
    complete_target,
    pass_settings,
    target_options,
)
from virtintrospect.errors import UsageError
from virtintrospect.insight.columns import record
from virtintrospect.insight.tables import CHECK, RULES
from virtintrospect.model.finding import SEVERITIES

if TYPE_CHECKING:
    from virtintrospect.client import Answer

#: Done with findings.
FINDINGS = 6


@click.command("check")
@click.argument("target", required=False, shell_complete=complete_target)
@target_options
@click.option(
    "--rule", "rules", multiple=True, metavar="ID",
    help="Only this rule; can be given several times.",
)  # fmt: skip
@click.option(
    "--severity", type=click.Choice(SEVERITIES), default="info",
    help="Only findings that are at least so severe.",
)  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List the rules, and look at nothing.")
@click.option(
    "--listening-allow", "listening", multiple=True, metavar="FILE|SOCKET",
    help="What may listen: tcp:22, udp:127.0.0.1:323, tcp:8000-8010, tcp:*, or a file of such "
    "lines. Anything else that listens is a finding.",
)  # fmt: skip
@click.option(
    "--newest-kernel", metavar="RELEASE",
    help="An older kernel than this one (as uname -r prints it) is a finding.",
)  # fmt: skip
@click.option(
    "--kernel-image", "images", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
    help="The vmlinuz or vmlinux of the guest's kernel, to compare its code with; of several the "
    "one of the same build is taken.",
)  # fmt: skip
@click.option(
    "--baseline", metavar="FILE", type=click.Path(path_type=Path),
    help="Whatever differs from this file, made by --save-baseline, is a finding.",
)  # fmt: skip
@click.option(
    "--save-baseline", "save", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Write down what TARGET is like now.",
)  # fmt: skip
@common
@pass_settings
def check(
    settings: Settings,
    target: str | None,
    *,
    rules: tuple[str, ...],
    severity: str,
    listing: bool,
    listening: tuple[str, ...],
    newest_kernel: str | None,
    images: tuple[Path, ...],
    baseline: Path | None,
    save: Path | None,
) -> int:
    """Look for what should not be in TARGET: hidden processes and modules, hooks, odd programs.

    docs/rules.md describes every rule, and when a finding means nothing. What could not be
    checked is told on standard error. The exit code is 6 where something was found.

    \b
    virt-introspect check web01
    virt-introspect check --list
    virt-introspect check web01 --severity high -o json
    virt-introspect check web01 --listening-allow tcp:22 --listening-allow ./allowed.txt
    virt-introspect check web01 --kernel-image ./vmlinuz-6.1.0-57-amd64
    virt-introspect check web01 --save-baseline web01.json
    virt-introspect check web01 --baseline web01.json
    """
    from virtintrospect.insight.checks import chosen

    wanted = chosen(rules)
    if listing:
        settings.show(RULES, [_rule(rule) for rule in wanted])
        return 0
    if target is None:
        raise UsageError("name a TARGET, or --list", hint="virt-introspect check --help")
    arguments = {
        "rules": ",".join(rule.id for rule in wanted) if rules else None,
        "severity": severity,
        "listening": _listening(listening),
        "newest_kernel": newest_kernel,
    }
    files = _Files(images, baseline, save)
    answer = _answer(settings, target, arguments, files)
    people = settings.output == "table" and settings.columns is None
    if people and not answer.rows:
        partly = bool(answer.problems)
        click.echo("no findings in what could be checked" if partly else "no findings")
    else:
        settings.show(CHECK, answer.rows)
    _report(settings, answer)
    return FINDINGS if answer.rows else 0


def _rule(rule: object) -> dict[str, Any]:
    fields = {name: getattr(rule, name, None) for name, *_ in RULES.columns}
    return fields | {"rule": getattr(rule, "id", None)}


def _listening(items: tuple[str, ...]) -> str | None:
    """What may listen, files read, as one text; ``None`` where nothing was said."""
    from virtintrospect.insight.checks.allowed import read_allowed

    return ",".join(map(str, read_allowed(items))) if items else None


class _Files(NamedTuple):
    """What the user has in files, which a daemon is not asked to read."""

    images: tuple[Path, ...]
    baseline: Path | None
    save: Path | None


def _answer(settings: Settings, target: str, arguments: dict[str, Any], files: _Files) -> Answer:
    from virtintrospect.client import Answer
    from virtintrospect.insight.checks import baseline, take_baseline
    from virtintrospect.insight.checks.asked import findings

    then = baseline.load(files.baseline) if files.baseline else None
    if not any(files):
        answer = settings.ask_daemon(target, CHECK, arguments)
        if answer is not None:
            return answer
    with settings.open(target, CHECK) as session:
        guest = session.guest
        found = findings(guest, **arguments, baseline=then, images=files.images)
        if files.save:
            baseline.save(files.save, take_baseline(guest))
        rows = [record(CHECK, finding) for finding in found]
        return Answer(rows, [(p.what, p.address) for p in session.take_problems()])


def _report(settings: Settings, answer: Answer) -> None:
    """Say on standard error what was not checked, all of it, and what made no sense."""
    from virtintrospect.insight.checks import NOTE

    notes = [what for what, _ in answer.problems if what.startswith(NOTE)]
    for note in notes:
        click.echo(f"note: {printable(note)}", err=True)
    settings.warn([it for it in answer.problems if not it[0].startswith(NOTE)])
