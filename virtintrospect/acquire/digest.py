"""SHA-256 of the file while it is written, in a thread of its own.

hashlib lets other threads run while it computes, so that on a second CPU the hash costs no time.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

_ZEROS = bytes(1 << 20)


class _Piece(NamedTuple):
    offset: int
    size: int
    #: ``None``: it is to be read back from the file.
    data: memoryview | bytes | None
    done: Callable[[], None] | None = None


class Digest:
    """Hashes pieces of a file in the order of their offsets; what is between them is zeros.

    Whoever writes the file never waits for the hash: it may be any number of pieces behind.

    :param before: bytes of the file that are there already.
    :param read: gives bytes of the file, by offset and size.
    """

    def __init__(self, before: int, read: Callable[[int, int], bytes]) -> None:
        self._hash = hashlib.sha256()
        self._position = 0
        self._read = read
        self._queue: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)
        self._queue.put(_Piece(0, before, None))
        self._thread.start()

    def add(
        self, offset: int, data: memoryview | bytes, done: Callable[[], None] | None = None
    ) -> None:
        """The next piece, which must not change until ``done`` is called, by another thread."""
        self._queue.put(_Piece(offset, len(data), data, done))

    def add_written(self, offset: int, size: int) -> None:
        """The next piece, which is in the file."""
        self._queue.put(_Piece(offset, size, None))

    def finish(self, size: int) -> str:
        """The hash of ``size`` bytes of file, in hexadecimal."""
        self._queue.put(_Piece(size, 0, b""))
        self._end()
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """End the thread; doing so twice is harmless."""
        self._stop = True
        self._end()

    def _end(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (piece := self._queue.get()) is not None and not self._stop:
                while self._position < piece.offset and not self._stop:
                    self._update(_ZEROS[: piece.offset - self._position])
                if piece.data is not None:
                    self._update(piece.data)
                    if piece.done is not None:
                        piece.done()
                    continue
                end = piece.offset + piece.size
                while self._position < end and not self._stop:
                    self._update(self._read(self._position, min(len(_ZEROS), end - self._position)))
        except Exception as error:  # noqa: BLE001 - raised again by finish(), in the caller's thread
            self._error = error

    def _update(self, data: memoryview | bytes) -> None:
        self._hash.update(data)
        self._position += len(data)
