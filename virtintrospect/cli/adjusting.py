"""``hints --apply`` and ``--undo``: following hints, and going back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from virtintrospect.cli.escape import printable
from virtintrospect.cli.options import Settings
from virtintrospect.errors import MemoryAccessError, VirtIntrospectError

if TYPE_CHECKING:
    from virtintrospect.domain import Domain
    from virtintrospect.host import Host
    from virtintrospect.insight.figures import Sample
    from virtintrospect.insight.policy import Policy
    from virtintrospect.model import Hint
    from virtintrospect.session import Session

#: A hint's domain, and the hint.
Named = tuple[str, "Hint"]


class Adjuster:
    """Follows those hints that can be followed, one after the other.

    What became of each is told on standard error, and kept in :attr:`outcomes`.

    :param yes: do not ask before each change.
    :param dry_run: change nothing; say what would be.
    """

    def __init__(
        self, settings: Settings, policy: Policy, *, yes: bool = False, dry_run: bool = False
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._yes = yes or dry_run
        self._dry_run = dry_run
        self._refused = False
        #: By the hint's place in the rows: ``after`` (bytes or vCPUs) and ``outcome``.
        self.outcomes: dict[int, dict[str, Any]] = {}

    def apply(self, rows: list[Named]) -> None:
        """Follow the hints."""
        from virtintrospect.host import Host
        from virtintrospect.plugin.adjust import can_follow

        possible = [place for place, (_, hint) in enumerate(rows) if can_follow(hint)]
        if not possible:
            click.echo("nothing here can be changed while the guest runs", err=True)
            return
        with Host(self._settings.uri, writable=not self._dry_run) as host:
            for place in possible:
                name, hint = rows[place]
                what = f"{printable(name)}: {hint.resource}{change_of(hint)}"
                if not self._yes and not click.confirm(f"{what}?", err=True):
                    continue
                try:
                    self.outcomes[place] = self._one(host, _named(host, name), hint)
                except VirtIntrospectError as error:
                    self.outcomes[place] = {"outcome": f"refused: {error.message}"}
                    self._refused = True
                click.echo(f"{what}: {printable(self.outcomes[place]['outcome'])}", err=True)

    def complain(self) -> None:
        """The error at the end.

        :raises MemoryAccessError: something was not done.
        """
        if self._refused:
            raise MemoryAccessError("not all of it was done", hint="see the outcomes above")

    def _one(self, host: Host, domain: Domain, hint: Hint) -> dict[str, Any]:
        from virtintrospect.plugin.adjust import follow, within_limits
        from virtintrospect.session import open_domain

        if self._dry_run:
            wanted = within_limits(hint, domain, self._policy)
            return {"after": wanted, "outcome": "would be done"}
        with open_domain(domain, access=self._settings.access) as session:
            done = follow(hint, domain, host, self._policy, partial(_sample, session))
        return {"after": done.after, "outcome": done.outcome}


def _named(host: Host, name: str) -> Domain:
    """The domain of that name, be it a number: no other one's id is meant here."""
    same = (domain for domain in host.domains(active_only=True) if domain.name == name)
    return next(same, None) or host.domain(name)


def _sample(session: Session) -> Sample:
    from virtintrospect.insight.figures import sample

    return sample(session.guest, session.target)


def undo(settings: Settings, target: str, *, dry_run: bool) -> None:
    """Bring a domain back to what it had before its first change, and tell it.

    In formats for programs each is a row of ``hints`` with ``action`` ``undo``.

    :raises UsageError: nothing was changed; with ``dry_run`` there are no rows then.
    """
    from virtintrospect.host import Host
    from virtintrospect.insight.tables import HINTS
    from virtintrospect.plugin import adjust

    outcome = "would be undone" if dry_run else "undone"
    with Host(settings.uri, writable=not dry_run) as host:
        domain = host.domain(target)
        done = adjust.to_undo(domain) if dry_run else adjust.undo(domain, host)
    for change in done:
        unit = 1 << 20 if change.resource == "memory" else 1
        click.echo(
            f"{printable(change.domain)}: {change.resource} {change.before // unit} → "
            f"{change.after // unit}{' MiB' if unit > 1 else ''}",
            err=True,
        )
    if settings.output != "table":
        rows = [
            {"domain": change.domain, "resource": change.resource, "action": "undo",
             "current": change.before, "after": change.after, "outcome": outcome}
            for change in done
        ]  # fmt: skip
        settings.show(HINTS, rows)


def change_of(hint: Hint) -> str:
    """What a hint changes, for people: `` 1.0 GiB → 300 MiB``."""
    from virtintrospect.cli.output import human_size

    if hint.recommended is None or hint.current is None:
        return ""
    if hint.resource == "memory":
        return f" {human_size(hint.current)} → {human_size(hint.recommended)}"
    return f" {hint.current} → {hint.recommended}"
