"""A table of a guest in which things come and go, against the guest's own word."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from virtintrospect.guests.linux.guest import LinuxGuest

#: Looks at each table, and what one of them may take on a busy machine.
ROUNDS = 2
PATIENCE = 60.0


class Look:
    """One table against the guest's word, several times."""

    def __init__(self, linux: LinuxGuest) -> None:
        self.linux = linux
        self.wrong: list[str] = []
        self.problems: Counter[str] = Counter()
        self.slowest = 0.0

    def each(
        self,
        word: Callable[[], Counter[Any]],
        ours: Callable[[], Iterable[Any]],
        comes_and_goes: Callable[[Any], bool],
        *,
        known: Callable[[Any], bool] = lambda _: True,
    ) -> int:
        """Compare; the number of rows that stay.

        :param word: rows as the guest has them.
        :param ours: the same of the table.
        :param comes_and_goes: whether a row bears the mark.
        :param known: whether the guest's word covers a row of ours.
        """
        fewest = 1 << 30
        for _ in range(ROUNDS):
            before = Counter({row: n for row, n in word().items() if known(row)})
            mine = self.timed(lambda: Counter(row for row in ours() if known(row)))
            after = Counter({row: n for row, n in word().items() if known(row)})
            stays = Counter(
                {row: n for row, n in (before & after).items() if not comes_and_goes(row)}
            )
            fewest = min(fewest, sum(stays.values()))
            self.wrong += [f"missing: {row}" for row in stays - mine]
            seen = before | after
            self.wrong += [
                f"invented: {row}" for row in mine if row not in seen and not comes_and_goes(row)
            ]
        return fewest

    def timed(self, read: Callable[[], Any]) -> Any:
        """What a table gives, its time and its problems noted."""
        start = time.monotonic()
        found = read()
        self.slowest = max(self.slowest, time.monotonic() - start)
        self.problems.update(re.sub(r"\d+", "N", p.what) for p in self.linux.take_problems())
        return found

    def check(self) -> None:
        """Nothing was wrong."""
        print(f"slowest {self.slowest:.2f} s, problems {dict(self.problems)}")
        assert "\n".join(self.wrong[:20]) == ""
        assert self.slowest < PATIENCE


def marked(row: Any) -> bool:
    """Whether a row has the mark of what comes and goes anywhere."""
    words = (word for word in row if isinstance(word, str | bytes))
    return any(re.match(r"churn|c0ffee|10\.99\.", _text(word)) for word in words)


def _text(word: str | bytes) -> str:
    return word.decode("latin-1") if isinstance(word, bytes) else word
