"""SHA-256 of the file while it is written, in a thread of its own.

hashlib lets other threads run while it computes, so that on a second CPU the hash costs no time.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable

_ZEROS = bytes(1 << 20)
#: Pieces of 1 MiB that may wait.
_WAITING = 16


class Digest:
    """Hashes pieces of a file in the order of their offsets; what is between them is zeros.

    :param before: bytes of the file that are there already, read by ``read``.
    """

    def __init__(self, before: int, read: Callable[[int, int], bytes]) -> None:
        self._hash = hashlib.sha256()
        self._position = 0
        self._queue: queue.Queue[tuple[int, bytes] | None] = queue.Queue(_WAITING)
        self._error: Exception | None = None
        self._stop = False
        self._thread = threading.Thread(
            target=self._run, args=(before, read), name="sha256", daemon=True
        )
        self._thread.start()

    def add(self, offset: int, data: bytes) -> None:
        """The next piece; waits while many are still to be hashed."""
        while self._thread.is_alive():
            try:
                self._queue.put((offset, data), timeout=0.5)
            except queue.Full:
                continue
            return

    def finish(self, size: int) -> str:
        """The hash of ``size`` bytes of file, in hexadecimal."""
        self.add(size, b"")
        self._end()
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """End the thread; doing so twice is harmless."""
        self._stop = True
        self._end()

    def _end(self) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.5)
            except queue.Full:
                continue
            self._thread.join()

    def _run(self, before: int, read: Callable[[int, int], bytes]) -> None:
        try:
            while self._position < before and not self._stop:
                self._update(read(self._position, min(1 << 20, before - self._position)))
            while (item := self._queue.get()) is not None and not self._stop:
                offset, data = item
                while self._position < offset and not self._stop:
                    self._update(_ZEROS[: offset - self._position])
                self._update(data)
        except Exception as error:  # noqa: BLE001 - raised again by finish(), in the caller's thread
            self._error = error

    def _update(self, data: bytes) -> None:
        self._hash.update(data)
        self._position += len(data)
