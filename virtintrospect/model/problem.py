"""What tables could not make sense of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in guest memory that could not be made sense of; it cost a row or a field."""

    what: str
    address: int
