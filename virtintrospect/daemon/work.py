"""Threads for what blocks: reading a guest takes milliseconds, or 45 seconds when it is hostile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(slots=True)
class Cost:
    """What one session has cost so far."""

    #: CPU time of its work, in seconds.
    seconds: float = 0.0
    #: Pieces of work: looks, tables.
    count: int = 0
    #: CPU seconds of the last piece.
    last: float = 0.0


class Workers:
    """A bounded number of threads; each session has one of them at most (its own lock)."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="guest")

    def submit(
        self, cost: Cost, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> asyncio.Future[_T]:
        """Run a function in a thread, its CPU time added to ``cost``."""

        def measured() -> _T:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                cost.last = time.thread_time() - start
                cost.seconds += cost.last
                cost.count += 1

        return asyncio.get_running_loop().run_in_executor(self._pool, measured)

    def close(self) -> None:
        """Take no more work; what is being done goes on in its thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)
