"""What one table may cost at most, whatever the guest's memory says."""

from __future__ import annotations

import time

from virtintrospect.model import Problem

#: Seconds that a table may take before it is finished with what it has.
SECONDS = 45.0
#: List entries, path components and the like that a table may follow altogether.
ENTRIES = 1 << 19
#: Bytes of paths, command lines and other strings that a table may show altogether; escaped
#: for output they become up to sixteen times as many.
SIZE = 64 << 20


class Budget:
    """Time, entries and bytes that are left for one table.

    What is too much is left out, and said once. Tables of honest guests come nowhere near:
    a process has a few path components of its own, and shares the rest with all others.
    """

    def __init__(
        self, *, seconds: float = SECONDS, entries: int = ENTRIES, size: int = SIZE
    ) -> None:
        self.deadline = time.monotonic() + seconds
        self.entries = entries
        self.size = size
        #: What was cut first, or ``None``.
        self.problem: Problem | None = None

    def late(self) -> bool:
        """Whether time is up."""
        if time.monotonic() <= self.deadline:
            return False
        self._cut("it took too long")
        return True

    def follow(self, count: int) -> int:
        """Take up to ``count`` entries; how many were left."""
        count = max(0, count)  # a count may be the guest's, and less than nothing
        taken = min(count, self.entries)
        if taken < count:
            self._cut("the guest shows too many objects")
        self.entries -= taken
        return taken

    def keep(self, size: int) -> bool:
        """Take ``size`` bytes; ``False`` where they are not left."""
        if size > self.size:
            self._cut("the guest shows too much text")
            return False
        self.size -= size
        return True

    def _cut(self, why: str) -> None:
        if self.problem is None:
            self.problem = Problem(f"the table is not complete: {why}", 0)
