"""Lengths of time, as options have them."""

from __future__ import annotations

import re
from typing import Any

import click

from virtintrospect.errors import UsageError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Span(click.ParamType):  # type: ignore[type-arg]
    """A length of time: ``90``, ``60s``, ``15m``, ``24h``, ``7d``.

    :param zero: none at all is one, too.
    """

    name = "time"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(self, value: Any, _param: Any, _context: Any) -> float:
        """The seconds that a text means."""
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", str(value))
        seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
        if match is None or (not seconds and not self._zero):
            raise UsageError(f"{value!r} is no length of time", hint="write 60s, 15m, 24h or 7d")
        return seconds
