"""The kernel as it says that it is: its taints, its age."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest

from virtintrospect.guests.linux.taints import TAINTS
from virtintrospect.insight.checks.context import Context
from virtintrospect.insight.checks.rule import Hit, Rule

#: What a taint says of who may be at work; others tell of the machine, or of a bug.
_SEVERE = {"F": "high", "R": "medium", "O": "medium", "E": "medium", "P": "medium", "K": "low"}
_HARMLESS = {"T": "info", "X": "info", "N": "info", "U": "info"}


def tainted(context: Context) -> Iterator[Hit]:
    """``tainted_mask`` (kernel/panic.c), a hit for each letter."""
    guest = context.guest
    mask = guest.pointer("tainted_mask")
    for bit in range(guest.kernel.pointer_size * 8):
        if not mask >> bit & 1:
            continue
        letter, text = TAINTS[bit] if bit < len(TAINTS) else (str(bit), "nobody knows this taint")
        yield Hit(
            f"taint {letter}".encode(),
            text.encode(),
            {"tainted": hex(mask)},
            _SEVERE.get(letter) or _HARMLESS.get(letter, "low"),
        )


def outdated(context: Context) -> Iterator[Hit]:
    """The release, against the newest one that the user names."""
    newest = context.options.newest_kernel
    if newest is None:
        return
    release = context.guest.info().release
    ours, theirs = _numbers(release.decode("utf-8", "replace")), _numbers(newest)
    if ours < theirs:
        yield Hit(
            b"kernel " + release,
            b"it is older than " + newest.encode(),
            {"running": release, "newest": newest},
        )


def is_release(text: str) -> bool:
    """Whether a text begins with the numbers of a release."""
    return any(_numbers(text))


def _numbers(release: str) -> list[int]:
    """The numbers that a release begins with: ``6.1.0-57-cloud-amd64`` is 6, 1, 0, 57."""
    head = re.match(r"\d{1,9}(?:[.\-+~]\d{1,9})*", release)
    found = [int(number) for number in re.findall(r"\d+", head[0])] if head else []
    return [number for number, _ in zip_longest(found, range(8), fillvalue=0)]


RULES = (
    Rule(
        id="taint",
        severity="medium",
        title="The kernel is tainted",
        looks_at="The kernel's taint mask, /proc/sys/kernel/tainted in the guest.",
        remedy="Find out what set it: `modules` shows the taints of each module, `dmesg` when. "
        "A taint stays until the next boot.",
        false_positives="Drivers from outside of the kernel (O, E, P), live patches (K), warnings "
        "and oopses of bugs (W, D), and hardware (M, S, I) taint, too. Only F, R, O, E and P are "
        "medium or more: know which of your modules cause them.",
        blind="A rootkit can clear the mask: no taint proves nothing.",
        reference="T1547.006",
        check=tainted,
    ),
    Rule(
        id="kernel-outdated",
        severity="medium",
        title="An older kernel runs than the newest one known",
        looks_at="The numbers that the release begins with, against --newest-kernel.",
        remedy="Update the kernel, and boot it; `info` shows which one runs.",
        false_positives="Distributions number in their own ways: name the newest release of the "
        "same distribution and flavour, as `uname -r` prints it.",
        blind="Without --newest-kernel it has nothing to compare with.",
        reference="T1068",
        check=outdated,
        needs="--newest-kernel",
    ),
)
