"""What is fuzzed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Target(NamedTuple):
    """A parser.

    :param seeds: makes good input, from which bad input is bent.
    :param run: does all that is done with such input.
    :param examples: how many inputs the short run tries: about two seconds of them.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], None]
    examples: int
