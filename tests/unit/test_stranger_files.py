"""utmp, os-release, passwd and zone files that a stranger has written."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux import osrelease, utmp
from virtintrospect.guests.linux.pagecache import CachedFile
from virtintrospect.guests.linux.users import account_names
from virtintrospect.guests.linux.zone import zone_at


def record(
    kind: int, pid: int, user: bytes = b"alice", time: tuple[int, int] = (7, 500_000)
) -> bytes:
    return struct.pack(
        "<hxxi32s4s32s256s4xiii36x", kind, pid, b"pts/0", b"ts/0", user, b"192.0.2.1", 0, *time
    )


def test_living_records_only() -> None:
    data = b"".join(record(kind, 10 + kind) for kind in range(10))
    found = list(utmp.records([(0, data)]))
    assert [(entry.type, entry.pid) for entry in found] == [("login", 16), ("user", 17)]
    assert found[1] == utmp.Record("user", 17, b"pts/0", b"alice", b"192.0.2.1", 7, 500_000)


def test_records_that_are_cut_by_a_hole() -> None:
    data = b"".join(record(7, pid) for pid in range(1, 12))
    pieces = [(0, data[:1000]), (2000, data[2000:4096])]
    assert [entry.pid for entry in utmp.records(pieces)] == [1, 2, 7, 8, 9, 10]


@pytest.mark.parametrize(
    "bad", [record(7, 0), record(7, -1), record(7, 1, time=(0, -1)), record(7, 1, time=(0, 10**6))]
)
def test_impossible_records(bad: bytes) -> None:
    assert list(utmp.records([(0, bad)])) == []


def test_names_without_an_end() -> None:
    (entry,) = utmp.records([(0, record(7, 1, b"\x1b" * 32))])
    assert entry.user == b"\x1b" * 32


def test_utmp_of_noise() -> None:
    noise = random.Random(1).randbytes(384 * 5000)
    assert len(list(utmp.records([(3, noise)]))) < 5000
    assert len(list(utmp.records([(0, record(7, 1) * 10_000)]))) == 4096


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"NAME=Debian", b"Debian"),
        (b'NAME="Debian GNU/Linux"', b"Debian GNU/Linux"),
        (b"NAME='it\\s'", b"it\\s"),
        (b'NAME="a \\"b\\" \\$c \\\\ \\n"', b'a "b" $c \\ \\n'),
        (b'  NAME="x"  ', b"x"),
        (b'NAME="open', b'"open'),
        (b'NAME="', b'"'),
        (b"NAME=", b""),
        (b"NAME=\x1b[31mred\xff", b"\x1b[31mred\xff"),
        (b"NAME=first\nNAME=last", b"last"),
    ],
)
def test_os_release(line: bytes, value: bytes) -> None:
    assert osrelease.parse(line) == {"NAME": value}


@pytest.mark.parametrize("line", [b"", b"# NAME=x", b"name=x", b"=x", b"NAME", b"1A=x", b"A B=x"])
def test_no_assignments(line: bytes) -> None:
    assert osrelease.parse(line) == {}


def test_os_release_is_bounded() -> None:
    assert len(osrelease.parse(b"A=" + b"x" * 100_000)["A"]) <= 1024
    many = b"\n".join(b"A%d=x" % number for number in range(100_000))
    assert len(osrelease.parse(many)) <= 1024


def accounts(*pieces: tuple[int, bytes]) -> dict[int, bytes]:
    names: Any = SimpleNamespace(read=lambda *_, **__: CachedFile(1 << 20, pieces, 1 << 20))
    return account_names(names)


def test_passwd() -> None:
    line = b"alice:x:1000:1000::/:/bin/sh\n"
    assert accounts((0, b"root:x:0:0:root:/root:/bin/sh\n" + line)) == {0: b"root", 1000: b"alice"}
    assert accounts((0, b"a:x:5:5::/:/bin/sh\n" + line[:20])) == {5: b"a"}
    assert accounts((0, b"a:x:5:5::/:\n" + line[:-1]), (4096, b"e:x:1:1::/:\n" + line)) == {
        5: b"a",
        1000: b"alice",
    }
    for bad in (
        b"a:x:-1:1:::\n",
        b"a:x:1e3:1:::\n",
        b"a:x\n",
        b"a:x:%d:1:::\n" % 10**20,
        b"\xff\n",
    ):
        assert accounts((0, bad)) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"TZif", b"TZif2" + bytes(39), b"\x7fELF" + bytes(60), b"TZif2" + b"\xff" * 2000,
        b"TZif2" + bytes(15) + struct.pack(">6I", 0, 0, 0, 1 << 31, 1 << 31, 1 << 31) + b"x" * 99,
    ],
)  # fmt: skip
def test_bytes_that_are_no_zone(content: bytes) -> None:
    with pytest.raises(CorruptDataError):
        zone_at(0, content, b"")


def test_zones_of_noise() -> None:
    """Whatever it is, it is refused with one of the expected errors, or read as a zone."""
    chance = random.Random(2)
    counts = [chance.randrange(6) for _ in range(6)]
    for _ in range(300):
        head = b"TZif2" + bytes(15) + struct.pack(">6I", *counts)
        with suppress(CorruptDataError):
            zone_at(chance.randrange(1 << 64), head + head + chance.randbytes(300), b"")


@pytest.mark.parametrize("name", [b"../../etc/passwd", b"/etc/passwd", b"\xff", b"No/Such", b".."])
def test_names_of_zones_that_are_none(name: bytes) -> None:
    with pytest.raises(CorruptDataError):
        zone_at(0, None, name)
