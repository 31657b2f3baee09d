"""Lines of /proc/PID/maps that no kernel writes."""

from __future__ import annotations

import pytest
from virtintrospect_kvm.maps import parse_maps

LINE = "7f3a00000000-7f3a40000000 rw-s 00000000 00:01 2051 /memfd:memory-backend-memfd (deleted)"


def test_a_line() -> None:
    (found,) = parse_maps(LINE.encode())
    assert (found.start, found.size, found.inode) == (0x7F3A_0000_0000, 1 << 30, 2051)
    assert found.path == "/memfd:memory-backend-memfd (deleted)"


@pytest.mark.parametrize(
    ("part", "instead"),
    [("00:01", "ffffffffff:01"), ("00:01", f"00:{'f' * 20}"), ("2051", "9" * 5000),
     ("7f3a00000000", "f" * 5000)],
)  # fmt: skip
def test_numbers_that_are_too_long(part: str, instead: str) -> None:
    assert parse_maps(LINE.replace(part, instead, 1).encode()) == []
