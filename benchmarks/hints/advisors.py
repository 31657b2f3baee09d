"""What is recommended for a guest: by us, and by what others do with the balloon's figures.

Each takes what was sampled and says how many bytes the guest should have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from virtintrospect.insight.hints import Facts, hints
from virtintrospect.insight.policy import load_policy

MIB = 1 << 20
#: The guests here are small: what is noise in a large one is a part of them.
POLICY = dataclasses.replace(load_policy(), dead_band_mib=32, smallest_mib=64)


def nothing(facts: Facts) -> int:
    """No action: what it has."""
    return facts.current or 0


def ours(facts: Facts) -> int:
    """``hints``, balanced."""
    for hint in hints(facts):
        if hint.resource == "memory" and hint.action in ("shrink", "grow"):
            return hint.recommended or 0
    return nothing(facts)


def dommemstat(facts: Facts) -> int:
    """A rule of thumb on ``virsh dommemstat`` alone: what is not unused, and a fifth more.

    ``unused`` is MemFree: page cache, hot or cold, counts as used.
    """
    total, free = _last(facts, "memory_total"), _last(facts, "memory_free")
    return int(min(nothing(facts), (total - free) * 1.2 + nothing(facts) - total))


def mom(facts: Facts) -> int:
    """The balloon rules of oVirt's MoM, fed with our figures, on a host that is just short.

    Its rules (doc/balloon.rules of oVirt/mom) shrink a guest by 5 % a round, down to what is not
    unused and 20 % of the balloon's size; here is where the rounds end.
    """
    left = nothing(facts) - _last(facts, "memory_free")
    return int(min(nothing(facts), left / (1 - 0.2)))


ADVISORS: dict[str, Callable[[Facts], int]] = {
    "ours": ours,
    "no action": nothing,
    "dommemstat": dommemstat,
    "MoM": mom,
}


def _last(facts: Facts, name: str) -> float:
    return facts.window.last("memory", name) or 0.0
