"""``hints``: advice on one guest, or on all of a host."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from virtintrospect.cli import picture
from virtintrospect.cli.adjusting import Adjuster, Named, change_of, undo
from virtintrospect.cli.escape import printable
from virtintrospect.cli.options import (
    Settings,
    common,
    complete_target,
    pass_settings,
    target_options,
)
from virtintrospect.cli.span import Span
from virtintrospect.errors import UsageError, VirtIntrospectError

if TYPE_CHECKING:
    from virtintrospect.insight.figures import Sample
    from virtintrospect.insight.hints import Facts, Identical
    from virtintrospect.insight.policy import Policy
    from virtintrospect.model import Hint
    from virtintrospect.session import Session

#: Where the daemon keeps history unless it is told otherwise (``daemon.state_dir``).
_HISTORY = Path("/var/lib/virtintrospect/history")
#: Seconds of figures that are taken where there are none and the user named no time.
_LOOK = 10.0
#: History that is looked at unless the user named a time.
_DAY = 86400.0
_FEWEST, _MOST = 2, 60
_POLICY = "balanced"


@click.command("hints")
@click.argument("target", required=False, shell_complete=complete_target)
@target_options
@click.option("--all", "everything", is_flag=True, help="All running domains of the connection.")
@click.option(
    "--for", "seconds", type=Span(), metavar="TIME",
    help="Watch for so long (60s, 5m) instead of asking the daemon's history.",
)  # fmt: skip
@click.option(
    "--last", "last", type=Span(), metavar="TIME",
    help="Only so much of the daemon's history (15m, 24h, 7d); one day by default.",
)  # fmt: skip
@click.option(
    "--policy", default=_POLICY, show_default=True, metavar="NAME",
    help="conservative, balanced or dense: how far a hint goes; docs/hints.md.",
)  # fmt: skip
@click.option("--apply", "change", is_flag=True, help="Do it, after asking; docs/hints.md.")
@click.option("--yes", is_flag=True, help="With --apply: do not ask.")
@click.option("--undo", "back", is_flag=True, help="Bring TARGET back to what it had before.")
@click.option("--dry-run", is_flag=True, help="With --apply, --undo: only say what would be.")
@click.option("--explain", is_flag=True, help="Say what each hint comes from, and what refutes it.")
@click.option(
    "--plot", metavar="FILE", type=click.Path(path_type=Path),
    help="Draw what they come from over time, too: FILE.png or FILE.svg. Needs matplotlib.",
)  # fmt: skip
@common
@pass_settings
def hints(
    settings: Settings,
    target: str | None,
    *,
    everything: bool,
    seconds: float | None,
    last: float | None,
    policy: str,
    explain: bool,
    change: bool,
    yes: bool,
    back: bool,
    plot: Path | None,
    dry_run: bool,
) -> None:
    """Show what TARGET really needs of memory and CPU, with the numbers that say so.

    \b
    virt-introspect hints web01
    virt-introspect hints web01 --for 60s --explain
    virt-introspect hints --all --policy dense
    virt-introspect hints web01 --last 7d --plot web01.png
    virt-introspect hints web01 -o json | jq -r '.[].virsh // empty'
    virt-introspect hints web01 --for 5m --apply
    virt-introspect hints web01 --undo
    """
    from virtintrospect.cli.output import choose
    from virtintrospect.insight.policy import load_policy
    from virtintrospect.insight.tables import HINTS

    others = everything or change or explain or seconds or last or plot or policy != _POLICY
    for wrong, text in (
        ((target is None) != everything, "name a TARGET, or --all"),
        (seconds and last, "--for watches now, --last looks back: one of them"),
        (yes and not change, "--yes goes with --apply"),
        (plot and everything, "--plot draws one TARGET, not --all"),
        (dry_run and not (change or back), "--dry-run goes with --apply or --undo"),
        (settings.nested and (everything or change or back), "--nested looks into one guest only"),
        (back and others, "--undo takes a TARGET, and no other option of hints but --dry-run"),
    ):
        if wrong:
            raise UsageError(text, hint="virt-introspect hints --help")
    picture.check(plot)
    if plot:
        from virtintrospect.insight.hintplot import require

        require()
    choose(HINTS, settings.columns, settings.output)
    chosen = load_policy(policy)
    if back:
        undo(settings, target or "", dry_run=dry_run)
        return
    if everything:
        rows = list(_of_all(settings, chosen, seconds, last))
    else:
        rows = _of_one(settings, target or "", chosen, seconds, last, plot)
    adjuster = Adjuster(settings, chosen, yes=yes, dry_run=dry_run)
    if settings.output == "table" and settings.columns is None:
        _for_people(rows, explain=explain, everything=everything)
        if change:
            adjuster.apply(rows)
    else:  # for programs: what became of each hint is in its row
        if change:
            adjuster.apply(rows)
        outcomes = adjuster.outcomes
        settings.show(
            HINTS,
            [_row(name, hint) | outcomes.get(place, {}) for place, (name, hint) in enumerate(rows)],
        )
    adjuster.complain()


def _of_one(
    settings: Settings,
    target: str,
    policy: Policy,
    seconds: float | None,
    last: float | None,
    plot: Path | None,
) -> list[Named]:
    from virtintrospect.session import open_session

    with open_session(target, settings.uri, access=settings.access) as session:
        name = session.domain.name if session.domain else settings.nested or target
        samples = [] if seconds else _kept(session, last or _DAY)
        if len(samples) < _FEWEST:
            if last:
                _say_missing([name])
            samples = next(iter(_watch([session], seconds or _LOOK)))
        facts, found = _judge(session, policy, samples)
    if plot:
        _draw(plot, name, facts, found)
    return [(name, hint) for hint in found]


def _draw(path: Path, name: str, facts: Facts, found: list[Hint]) -> None:
    """The picture; what the guest calls itself stands in reasons."""
    from dataclasses import replace

    from virtintrospect.insight.hintplot import draw

    shown = [replace(hint, reason=printable(hint.reason)) for hint in found]
    title = f"{printable(name)}: {len(facts.window)} samples, policy {facts.policy.name}"
    picture.write(path, draw(facts, shown, title, path.suffix[1:]))


def _of_all(
    settings: Settings, policy: Policy, seconds: float | None, last: float | None
) -> Iterator[Named]:
    from contextlib import ExitStack

    from virtintrospect.cli.judging import identical
    from virtintrospect.host import connect
    from virtintrospect.session import open_domain

    with ExitStack() as stack:
        with connect(settings.uri) as host:
            domains = list(host.domains(active_only=True))
        sessions = []
        for domain in domains:
            try:
                session = stack.enter_context(open_domain(domain, access=settings.access))
                session.recognise(thorough=False)
                sessions.append(session)
            except VirtIntrospectError as error:
                _warn(domain.name, error)
        kept, there = [], []
        for session in sessions:
            try:
                kept.append([] if seconds else _kept(session, last or _DAY))
                there.append(session)
            except VirtIntrospectError as error:  # it ended meanwhile
                _warn(session.domain.name if session.domain else "", error)
        sessions = there
        if any(len(samples) < _FEWEST for samples in kept):
            if last:
                few = [s for s, k in zip(sessions, kept, strict=True) if len(k) < _FEWEST]
                _say_missing([session.domain.name for session in few if session.domain])
            now = _watch(sessions, seconds or _LOOK)
            kept = [k if len(k) >= _FEWEST else n for k, n in zip(kept, now, strict=True)]
        same = identical(sessions) if len(sessions) > 1 else [None] * len(sessions)
        found = [
            (session.domain.name if session.domain else "", hint)
            for session, samples, pages in zip(sessions, kept, same, strict=True)
            for hint in _judge(session, policy, samples, pages)[1]
        ]
    yield from sorted(found, key=lambda row: _ORDER.get(row[1].action, len(_ORDER)))


#: Guests in trouble first.
_ORDER = {action: place for place, action in enumerate(("grow", "host", "watch", "reclaim"))}


def _kept(session: Session, seconds: float) -> list[Sample]:
    """The daemon's history of the domain, and what there is now."""
    from virtintrospect.insight.figures import sample
    from virtintrospect.insight.history import read_history

    if session.domain is None:
        return []
    try:
        samples = read_history(_HISTORY, session.domain.uuid, time.time() - seconds)
    except OSError:
        return []  # it is not for this user
    return [*samples, sample(session.guest, session.target)] if samples else []


def _say_missing(names: list[str]) -> None:
    """That there is no history of some, where the user asked for it."""
    whose = ", ".join(map(printable, names))
    text = f"no history of {whose} that this user may read: only what it is like now counts"
    click.echo(f"warning: {text}", err=True)


def _watch(sessions: list[Session], seconds: float) -> list[list[Sample]]:
    """Samples of guests, taken for so long."""
    from virtintrospect.insight.figures import sample

    live = [session for session in sessions if session.target.live]
    if not live:
        return [[sample(session.guest, session.target)] for session in sessions]
    steps = min(_MOST, max(_FEWEST, int(seconds)))
    taken: list[list[Sample]] = [[] for _ in sessions]
    start = time.monotonic()
    with click.progressbar(range(steps + 1), label="watching", file=_terminal()) as bar:
        for step in bar:
            time.sleep(max(0.0, start + seconds * step / steps - time.monotonic()))
            for session, samples in zip(sessions, taken, strict=True):
                try:
                    samples.append(sample(session.guest, session.target))
                except VirtIntrospectError as error:
                    if step == steps:
                        _warn(session.domain.name if session.domain else "", error)
    return taken


def _terminal() -> TextIO:
    """Where progress is shown: nowhere, unless somebody looks."""
    return sys.stderr if sys.stderr.isatty() else io.StringIO()


def _judge(
    session: Session, policy: Policy, samples: list[Sample], same: Identical | None = None
) -> tuple[Facts, list[Hint]]:
    from virtintrospect.cli.judging import facts_of
    from virtintrospect.insight.hints import hints

    facts = facts_of(session, policy, samples, same)
    return facts, hints(facts)


def _row(name: str, hint: Hint) -> dict[str, Any]:
    from virtintrospect.insight.tables import HINTS

    values = {column.name: getattr(hint, column.name, None) for column in HINTS.columns}
    return {key: value for key, value in (values | {"domain": name}).items() if value is not None}


def _for_people(rows: list[Named], *, explain: bool, everything: bool) -> None:
    from virtintrospect.cli.output import human_size

    if not rows:
        click.echo("no hints: it has what it needs, and not much more")
    for name, hint in rows:
        head = f"{printable(name)}: {hint.resource}: {hint.action}{change_of(hint)}"
        click.echo(f"{head} (confidence {hint.confidence:.2f})")
        click.echo(f"    {printable(hint.reason)}")
        if hint.virsh:
            click.echo(f"    {printable(hint.virsh)}")
        if explain:
            for item in hint.evidence:
                click.echo(f"      {printable(item)}")
            click.echo(f"      wrong if: {printable(hint.refuted_by)}")
    if everything:
        back = sum(
            (hint.current or 0) - (hint.recommended or 0)
            for _, hint in rows
            if hint.resource == "memory" and hint.action == "shrink"
        )
        wanted = {name for name, hint in rows if hint.action == "grow"}
        click.echo(f"{human_size(back)} could be given back; guests in trouble: {len(wanted)}")


def _warn(name: str, error: VirtIntrospectError) -> None:
    click.echo(f"warning: {printable(name)}: {printable(error.message)}", err=True)
