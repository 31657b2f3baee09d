"""process_vm_readv(2): many ranges of another process's memory in one system call."""

from __future__ import annotations

from array import array
from functools import cache
from typing import Any, NamedTuple


class _Calls(NamedTuple):
    readv: Any
    new_bytes: Any
    address: Any
    address_within: Any
    move: Any
    errno: Any


class Window:
    """Memory of the caller's, which is to be filled; a memoryview that can be written."""

    def __init__(self, out: memoryview) -> None:
        calls = _calls()
        self._move = calls.move
        self._out = out
        self.size = len(out)
        self.address: int = calls.address_within(out)

    def put(self, position: int, data: bytes) -> None:
        """Fill a range."""
        if position < 0 or position + len(data) > self.size:
            raise IndexError(position)
        self._move(self.address + position, data, len(data))


class Buffer(Window):
    """A :class:`bytes` object under construction.

    The C API allows writing to one that ``PyBytes_FromStringAndSize(NULL, n)`` has just made;
    so data goes from the guest to the caller without a second copy. :attr:`data` must not be
    given away before every byte was filled: its memory is not cleared.

    :param size: bytes, two at least (shorter objects are shared by the interpreter).
    """

    def __init__(self, size: int) -> None:
        calls = _calls()
        self._move = calls.move
        self.size = size
        self.data: bytes = calls.new_bytes(None, size) if size > 1 else bytes(bytearray(size))
        self.address = calls.address(self.data)


def read(pid: int, out: Window, position: int, ranges: array[int]) -> int:
    """Read ranges of a process, one after the other, into ``out`` from ``position`` on.

    :param ranges: address and length of each range in turn (``struct iovec``), 1024 at most.
    :returns: bytes read, short where a range could not be read whole; or minus errno.
    """
    calls = _calls()
    where, count = ranges.buffer_info()
    local = array("Q", [out.address + position, out.size - position])
    done: int = calls.readv(pid, local.buffer_info()[0], 1, where, count // 2, 0)
    return done if done >= 0 else -calls.errno()


@cache
def _calls() -> _Calls:
    # Costs 2 ms of import, which guests with mapped RAM need not pay.
    import ctypes

    readv = ctypes.CDLL(None, use_errno=True).process_vm_readv
    readv.restype = ctypes.c_ssize_t
    pointer, number = ctypes.c_void_p, ctypes.c_ulong
    readv.argtypes = [ctypes.c_int, pointer, number, pointer, number, number]
    new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
    new_bytes.restype = ctypes.py_object
    new_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
    address = ctypes.pythonapi.PyBytes_AsString
    address.restype = ctypes.c_void_p
    address.argtypes = [ctypes.py_object]

    def address_within(out: memoryview) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(out))

    return _Calls(readv, new_bytes, address, address_within, ctypes.memmove, ctypes.get_errno)
