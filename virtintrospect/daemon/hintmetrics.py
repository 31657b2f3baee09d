"""Hints as metrics: what the history of each domain says, looked at now and then.

Labels are the resource and the action of a hint, words of our own: nothing of a guest's becomes
a label, and a domain has no more series than there are kinds of hints.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.cli.escape import printable
from virtintrospect.daemon.state import State
from virtintrospect.errors import UsageError
from virtintrospect.insight.hints import Facts, hints
from virtintrospect.insight.history import Window, read_history
from virtintrospect.insight.policy import Policy, load_policy

if TYPE_CHECKING:
    from virtintrospect.daemon.sessions import DomainSession
    from virtintrospect.model import Hint

#: How far back figures count, and how long what they said is believed; seconds.
_DAY, _FRESH = 86_400.0, 300.0
#: CPU seconds that one scrape may spend on looking anew; others' turn comes with the next.
_BUDGET = 0.2


class _Said(NamedTuple):
    """What was said of a domain, and when it is looked at again."""

    until: float
    hints: dict[tuple[str, str], Hint]


class HintMetrics:
    """Gauges of the hints on every ready domain.

    :param folder: the daemon's histories.
    :param policy: name of the policy; one that is not sound gives no metrics.
    """

    def __init__(self, folder: Path, policy: str = "balanced") -> None:
        self._folder = folder
        self._name = policy
        self._said: dict[str, _Said] = {}

    def collect(self, sessions: list[DomainSession]) -> Iterator[Any]:
        """The metrics, of domains that have been looked at so far."""
        from prometheus_client.core import GaugeMetricFamily

        self._refresh(sessions)
        families = {
            name: GaugeMetricFamily(f"libvirt_domain_hint_{name}", text, labels=_LABELS)
            for name, text in _TEXTS.items()
        }
        for session in sessions:
            said = self._said.get(session.domain.uuid)
            for (resource, action), hint in (said.hints if said else {}).items():
                labels = [printable(session.domain.name), session.domain.uuid, resource, action]
                families["confidence"].add_metric(labels, hint.confidence)
                unit = _UNITS.get(resource)
                for which in ("current", "recommended") if unit else ():
                    value = getattr(hint, which)
                    if value is not None:
                        families[f"{which}_{unit}"].add_metric(labels, value)
        yield from families.values()

    def _refresh(self, sessions: list[DomainSession]) -> None:
        """Look at domains whose turn it is, the longest waiting first."""
        try:
            policy = load_policy(self._name)
        except UsageError:
            return  # `hints` and the journal tell of the mistake
        ready = {one.domain.uuid: one for one in sessions if one.state is State.READY}
        self._said = {uuid: said for uuid, said in self._said.items() if uuid in ready}
        now = time.monotonic()
        due = [(said.until, uuid) for uuid in ready if (said := self._known(uuid)).until <= now]
        end = time.thread_time() + _BUDGET
        for _, uuid in sorted(due):
            self._said[uuid] = _Said(now + _FRESH, self._hints(ready[uuid], policy))
            if time.thread_time() > end:
                return

    def _known(self, uuid: str) -> _Said:
        return self._said.get(uuid, _NOTHING)

    def _hints(self, session: DomainSession, policy: Policy) -> dict[tuple[str, str], Hint]:
        """One hint of each kind, the surest."""
        domain = session.domain
        try:
            window = Window(read_history(self._folder, domain.uuid, time.time() - _DAY))
        except OSError:
            return {}
        found: dict[tuple[str, str], Hint] = {}
        for hint in hints(Facts(window, policy, domain)) if len(window) > 1 else ():
            kind = hint.resource, hint.action
            if kind not in found or hint.confidence > found[kind].confidence:
                found[kind] = hint
        return found


_NOTHING = _Said(0.0, {})
_LABELS = ("domain", "uuid", "resource", "action")
_UNITS: Mapping[str, str] = {"memory": "bytes", "cpu": "vcpus"}
_TEXTS = {
    "confidence": "How sure a hint is, 0.1 to 1; no series where there is no hint",
    "current_bytes": "Memory that the hint is about, as it is",
    "recommended_bytes": "Memory that the hint recommends",
    "current_vcpus": "Virtual processors, as they are",
    "recommended_vcpus": "Virtual processors that the hint recommends",
}
