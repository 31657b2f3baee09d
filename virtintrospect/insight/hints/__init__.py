"""Hints: advice on what a guest needs, with the numbers that it comes from.

A rule is a function that takes :class:`~virtintrospect.insight.hints.facts.Facts` and yields
:class:`~virtintrospect.model.Hint`; :data:`RULES` names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from virtintrospect.insight.hints.cache import cache_hints
from virtintrospect.insight.hints.cpu import cpu_hints
from virtintrospect.insight.hints.facts import Facts, Identical
from virtintrospect.insight.hints.files import filesystem_hints
from virtintrospect.insight.hints.host import host_memory_hints
from virtintrospect.insight.hints.memory import held_hints, leak_hints, size_hints
from virtintrospect.insight.hints.pages import huge_hints, merge_hints, numa_hints
from virtintrospect.insight.hints.tasks import io_hints, task_hints
from virtintrospect.model import Hint

__all__ = ["RULES", "Facts", "Identical", "hints"]

RULES: tuple[Callable[[Facts], Iterator[Hint]], ...] = (
    size_hints,
    held_hints,
    cache_hints,
    leak_hints,
    huge_hints,
    numa_hints,
    merge_hints,
    host_memory_hints,
    cpu_hints,
    io_hints,
    filesystem_hints,
    task_hints,
)


def hints(facts: Facts) -> list[Hint]:
    """All hints on a guest, by resource."""
    return [hint for rule in RULES for hint in rule(facts)]
