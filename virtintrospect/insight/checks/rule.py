"""What a rule is, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import UsageError
from virtintrospect.model.finding import SEVERITIES, Finding

if TYPE_CHECKING:
    from virtintrospect.insight.checks.context import Context

#: Bytes of an item of a list for people.
_LONGEST = 256
#: What a piece of evidence may be; numbers are decimal unless they are given as text.
Value = int | str | bytes


class Hit(NamedTuple):
    """Something that a rule has found.

    :param subject: what it is about. On a live guest a second look must find the same subject.
    :param detail: one sentence without its full stop.
    :param evidence: what was seen, by name.
    :param severity: where it is another than the rule's usual one.
    """

    subject: bytes
    detail: bytes
    evidence: Mapping[str, Value]
    severity: str = ""


@dataclass(frozen=True)
class Rule:
    """A rule: data that people read (docs/rules.md is made of it), and the function that looks."""

    id: str
    #: The usual one.
    severity: str
    #: What is wrong when it finds something.
    title: str
    looks_at: str
    remedy: str
    #: When a finding means nothing, and how to tell.
    false_positives: str
    #: Where it cannot look.
    blind: str
    #: MITRE ATT&CK technique, where there is one.
    reference: str
    check: Callable[[Context], Iterator[Hit]] = field(repr=False)
    #: It only has something to say where an option brings what it compares with.
    needs: str = ""

    def finding(self, hit: Hit) -> Finding:
        """A hit of this rule as a record."""
        return Finding(
            rule=self.id,
            severity=hit.severity or self.severity,
            subject=hit.subject,
            detail=hit.detail,
            evidence=b" ".join(_pair(name, value) for name, value in hit.evidence.items()),
            remedy=self.remedy,
        )


def _pair(name: str, value: Value) -> bytes:
    raw = value if isinstance(value, bytes) else str(value).encode()
    return name.encode() + b"=" + raw.replace(b" ", b"\\x20")


def known(evidence: Mapping[str, Value | None]) -> dict[str, Value]:
    """Evidence without what is not known."""
    return {name: value for name, value in evidence.items() if value is not None}


def rank(severity: str) -> int:
    """Place of a severity, the most urgent one last.

    :raises UsageError: there is none of that name.
    """
    if severity not in SEVERITIES:
        raise UsageError(f"{severity!r} is no severity", hint=f"there are: {', '.join(SEVERITIES)}")
    return SEVERITIES.index(severity)


def process(pid: int, name: bytes) -> bytes:
    """How a process is called in a finding."""
    return b"process %d (%s)" % (pid, name.split(b"\0", 1)[0])


def shortened(items: list[bytes], most: int = 8) -> bytes:
    """A list for people, cut where it is long, as are its items."""
    items = [item if len(item) <= _LONGEST else item[:_LONGEST] + b" [...]" for item in items]
    more = b" and %d more" % (len(items) - most) if len(items) > most else b""
    return b", ".join(items[:most]) + more
