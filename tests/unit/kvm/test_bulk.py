"""Another process's memory, read into memory of the caller's."""

from __future__ import annotations

import ctypes
import mmap
import os
from array import array

import pytest
from virtintrospect_kvm import bulk


def test_it_goes_where_the_caller_wants_it() -> None:
    """Two ranges of a process (this one), behind each other, and no byte beyond them."""
    source = ctypes.create_string_buffer(b"0123456789")
    address = ctypes.addressof(source)
    with mmap.mmap(-1, mmap.PAGESIZE) as target, memoryview(target) as out:
        window = bulk.Window(out[2:10])
        ranges = array("Q", [address + 1, 3, address + 5, 2])
        assert bulk.read(os.getpid(), window, 1, ranges) == 5
        window.put(6, b"!!")
        with pytest.raises(IndexError):
            window.put(7, b"!!")
        assert bytes(out[:12]) == b"\0\0\x0012356!!\0\0"
        del window


def test_memory_that_is_not_there() -> None:
    out = bulk.Window(memoryview(bytearray(16)))
    assert bulk.read(os.getpid(), out, 0, array("Q", [8, 16])) < 0
