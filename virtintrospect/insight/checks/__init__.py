"""Checks: rules that look for what should not be in a guest; docs/rules.md lists them.

A rule is a :class:`~virtintrospect.insight.checks.rule.Rule`: data, and a generator function
that takes a ``Context`` and yields ``Hit``. ``RULES`` names them all.

A guest goes on while it is looked at. What a rule finds in a live one it must find again, and
once more, before it becomes a finding.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from typing import Any

from virtintrospect.errors import MemoryAccessError, UsageError, VirtIntrospectError
from virtintrospect.guests.base import Guest
from virtintrospect.guests.linux.budget import ENTRIES, Budget
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight.checks import (
    baseline,
    credentials,
    entries,
    hidden,
    hooks,
    kernel,
    listening,
    modules,
    pages,
    probes,
    programs,
    text,
)
from virtintrospect.insight.checks.context import NONSENSE, Context, Options
from virtintrospect.insight.checks.rule import Hit, Rule, rank
from virtintrospect.model import Finding, Problem

__all__ = ["NOTE", "RULES", "Options", "Rule", "check", "chosen", "take_baseline"]

RULES: tuple[Rule, ...] = (
    *hidden.RULES,
    *modules.RULES,
    *pages.RULES,
    *entries.RULES,
    *probes.RULES,
    *hooks.RULES,
    *text.RULES,
    *credentials.RULES,
    *programs.RULES,
    *listening.RULES,
    *kernel.RULES,
    *baseline.RULES,
)
#: How a problem begins that says what was not checked.
NOTE = "not checked: "
#: Seconds before each further look at what was found in a live guest.
_AGAIN = (0.1, 0.5)
#: Such looks, until one sees as much as the first did.
_TRIES = 3
#: Seconds that all rules together may take; what a rule began by then it ends.
_SECONDS = 60.0
#: Things that are said to be unchecked.
_MOST_NOTES = 200


def chosen(ids: Iterable[str]) -> list[Rule]:
    """Rules by their ids, in the order of ``RULES``; all where none is named.

    :raises UsageError: there is no such rule.
    """
    wanted = set(ids)
    known = {rule.id for rule in RULES}
    if strange := sorted(wanted - known):
        raise UsageError(
            f"there is no rule {strange[0]!r}", hint="`virt-introspect check --list` lists them"
        )
    return [rule for rule in RULES if not wanted or rule.id in wanted]


def check(
    guest: Guest,
    rules: Collection[str] = (),
    *,
    severity: str = "info",
    options: Options | None = None,
) -> list[Finding]:
    """What rules find in a guest, the most urgent first.

    What could not be looked at is among the guest's problems, as text that begins with
    ``NOTE``: nothing of it is known to be clean.

    :param rules: ids of those that are wanted; all where none is given.
    :param severity: leave out what is less severe.
    :param options: what to compare with.
    :raises UsageError: there is no such rule or severity.
    """
    wanted, least = chosen(rules), rank(severity)
    options = options or Options()
    if not isinstance(guest, LinuxGuest):
        guest.problems.append(Problem(f"{NOTE}anything: the rules are for Linux guests", 0))
        return []
    budget = Budget(seconds=_SECONDS)
    context = Context(guest, options, budget)
    found: list[Finding] = []
    for rule in wanted:
        if budget.late():
            context.cannot(f"{rule.id}: it took too long")
            continue
        found += [rule.finding(hit) for hit in _confirmed(rule, context)]
    _tell(context)
    found = [finding for finding in found if rank(finding.severity) >= least]
    return sorted(found, key=lambda finding: -rank(finding.severity))


def take_baseline(guest: Guest) -> dict[str, Any]:
    """What the guest is like now, for ``Options(baseline=…)`` of another time.

    What cannot be read is left out, and told by the guest's problems as :func:`check` does.
    """
    if not isinstance(guest, LinuxGuest):
        return {}
    context = Context(guest, Options(), Budget(seconds=_SECONDS))
    found = baseline.take(context)
    _tell(context)
    return found


def _tell(context: Context) -> None:
    """Put what was not checked before all other problems, of which a guest may make too many."""
    notes = list(dict.fromkeys(context.notes))
    if len(notes) > _MOST_NOTES:
        notes[_MOST_NOTES:] = [f"{len(notes) - _MOST_NOTES} more things"]
    context.guest.problems[:0] = [Problem(NOTE + note, 0) for note in notes]


def _confirmed(rule: Rule, context: Context) -> list[Hit]:
    """What a rule finds each time that it looks."""
    hits, unseen = _look(rule, context)
    for seconds in _AGAIN:
        if not hits or not context.guest.live:
            break
        found = _look_again(rule, context, unseen, seconds)
        if found is None:
            context.cannot(f"{rule.id}: what it found could not be looked at again")
            break
        again = {_about(hit) for hit in found}
        hits = [hit for hit in hits if _about(hit) in again]
    return hits


def _look_again(rule: Rule, context: Context, unseen: set[str], seconds: float) -> list[Hit] | None:
    """The hits of a further look; ``None`` where time is up, or none sees as much as the first did.

    What sees less refutes nothing.

    :param unseen: what the first look could not see.
    :param seconds: to wait before each try.
    """
    notes: list[str] = []
    for _ in range(_TRIES):
        if context.budget.late():
            break
        time.sleep(seconds)
        context.guest.memory.expire()
        fresh = Context(context.guest, context.options, context.budget)
        found, missing = _look(rule, fresh)
        if missing <= unseen:
            return found
        notes = fresh.notes
    context.notes += notes
    return None


def _about(hit: Hit) -> bytes:
    """Its subject, without a process's name: that may change from one look to the next."""
    return re.sub(rb"(process \d+) \(.*\)", rb"\1", hit.subject, flags=re.DOTALL)


def _look(rule: Rule, context: Context) -> tuple[list[Hit], set[str]]:
    """The hits of a rule, one for each subject; and what it could not look at, without numbers."""
    hits: dict[bytes, Hit] = {}
    budget, noted = context.budget, len(context.notes)
    # Each look has its own, so that no rule takes the next one's; time is for all together.
    budget.entries, budget.problem = ENTRIES, None
    try:
        for hit in rule.check(context):
            hits.setdefault(hit.subject, hit)
            if not budget.follow(1) or budget.late():
                break
    except MemoryAccessError as error:
        if not hasattr(error, "address"):
            raise  # the guest is gone
        context.cannot(f"{rule.id}: {error.message}")
    except VirtIntrospectError as error:
        context.cannot(f"{rule.id}: {error.message}")
    except NONSENSE as error:
        # No number of a guest's may keep the other rules from looking.
        context.cannot(f"{rule.id}: what the guest says makes no sense: {error!r}")
    if budget.problem:
        context.cannot(f"{rule.id}: {budget.problem.what}")
    return list(hits.values()), {re.sub(r"0x[0-9a-f]+|\d+", "", n) for n in context.notes[noted:]}
