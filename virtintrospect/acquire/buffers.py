"""Memory that pieces of a guest are copied into, again and again the same.

It begins at a page's border, as writing past the page cache wants it (O_DIRECT in open(2)).
"""

from __future__ import annotations

import mmap

#: Bytes of all buffers together; most dumps need few of them.
_MOST = 64 << 20


class Buffers:
    """Buffers of one size, for the thread that fills them and one that is done with them later.

    :param size: bytes of each, whole pages.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = _MOST // size
        self._free: list[memoryview] = []

    def take(self) -> memoryview | None:
        """One that nobody uses, rather one that is still in the CPU's caches.

        ``None``: all are in use, and there may be no more of them.
        """
        try:
            return self._free.pop()
        except IndexError:
            return self.another() if self._left > 0 else None

    def another(self) -> memoryview:
        """A new one."""
        self._left -= 1
        return memoryview(mmap.mmap(-1, self._size))

    def give(self, buffer: memoryview) -> None:
        """It is not needed any more; of any thread."""
        self._free.append(buffer)
