"""Changing real guests' memory: each change is seen by the guest itself."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from virtintrospect.cli.main import run
from virtintrospect.driver import Access
from virtintrospect.errors import (
    FaultError,
    NoSuchTargetError,
    NotWritableError,
    UnsupportedError,
    UsageError,
)

from .lab.guest import Guest
from .ways import (
    STUB,
    WRITE,
    is_tainted,
    opened,
    panic_timeout,
)


@pytest.fixture(params=["kvm-mmap", "kvm-process", "anonymous", "gdbstub"])
def changeable(
    request: pytest.FixtureRequest, one_guest: Guest, ours: Guest
) -> tuple[Guest, Access]:
    """A guest for each way of writing."""
    return {
        "kvm-mmap": (one_guest, WRITE),
        "kvm-process": (one_guest, Access(transport="kvm-process", write=True)),
        "anonymous": (ours, WRITE),
        "gdbstub": (ours, STUB),
    }[request.param]


def test_the_guest_sees_what_is_written(changeable: tuple[Guest, Access]) -> None:
    guest, access = changeable
    before = panic_timeout(guest)
    with opened(guest, access) as session:
        session.write("panic_timeout", (4711).to_bytes(4, "little"))
    assert panic_timeout(guest) == 4711
    with opened(guest, access) as session:
        session.kernel.write_integer(
            session.symbols.address("panic_timeout"), before, 4, signed=True
        )
    assert panic_timeout(guest) == before


def test_a_process_sees_what_is_written(changeable: tuple[Guest, Access]) -> None:
    """In its environment, which is in its own stack: across two pages, and only there."""
    guest, access = changeable
    size = 6000
    pid = int(guest.run(f"X=$(head -c {size} /dev/zero | tr '\\0' a) sleep 1000 >&- & echo $!"))
    try:
        stat = f"/proc/{pid}/stat"  # when it is the program
        status = guest.run(f"until grep -q '(sleep) S' {stat}; do usleep 50000; done; cat {stat}")
        place = int(status.split()[49])  # env_start, proc(5)
        environment = guest.get(f"/proc/{pid}/environ")
        at = environment.index(b"X=aaa") + 2
        text = b"written from outside " * 200
        with opened(guest, access) as session:
            session.write(place + at + 1000, text, pid=pid)
            with pytest.raises(NoSuchTargetError):
                session.write(place, b"x", pid=4_000_000)
        expected = bytearray(environment)
        expected[at + 1000 : at + 1000 + len(text)] = text
        assert guest.get(f"/proc/{pid}/environ") == expected
    finally:
        guest.run(f"kill {pid}")


def test_what_must_not_be_written(changeable: tuple[Guest, Access]) -> None:
    guest, access = changeable
    with opened(guest, access) as session:
        memory = session.memory
        with pytest.raises(NotWritableError, match="read-only"):
            session.write("linux_banner", b"X")
        code = session.symbols.address("schedule")
        with pytest.raises(NotWritableError, match="read-only"):
            session.write(code, b"\xcc")
        first = next(p for p in session.processes() if not p.kernel_thread)
        text = next(a for a in session.maps(first.pid) if a.permissions.startswith("r-x"))
        with pytest.raises(NotWritableError, match="others may share it"):
            session.write(text.start, b"\xcc", pid=first.pid)
        for rom in (0xC0000, 0xFFFF0, 0xFFFFF):
            before = memory.read(rom, 1)
            with pytest.raises(NotWritableError, match="ROM"):
                memory.write(rom, b"x")
            assert memory.read(rom, 1) == before
        last = next(region for region in memory.regions if region.end > 1 << 20)
        tail = memory.read(last.end - 8, 8)
        for paddr, size in ((last.end - 4, 8), (0xA0000, 1), (0x9FFFF, 2), (1 << 45, 1)):
            with pytest.raises(FaultError):
                memory.write(paddr, b"x" * size)
        assert memory.read(last.end - 8, 8) == tail


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
def test_absent_pages_are_refused_and_stay_absent(
    one_guest: Guest, ours: Guest, backing: str
) -> None:
    guest = one_guest if backing == "memfd" else ours
    # Paused, so that the guest does not take that page itself meanwhile.
    with opened(guest, WRITE) as session, session.paused():
        memory = session.memory
        runs = list(memory.resident())
        absent = next(a.end for a, b in pairwise(runs) if b.start > a.end > 2**20)
        before = memory.read(absent - 8, 8)
        with pytest.raises(NotWritableError, match="has not got this page") as caught:
            memory.write(absent - 4, b"12345678")
        assert caught.value.address == absent
        assert memory.read(absent - 8, 8) == before
        assert not any(run.start <= absent < run.end for run in memory.resident())


def test_writing_needs_leave(one_guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(one_guest, Access()) as session:
        with pytest.raises(UnsupportedError, match="cannot change memory"):
            session.write("panic_timeout", b"x")
        with pytest.raises(UsageError, match="not opened for writing"):
            session.memory.write(0x1000, b"x")
        with pytest.raises(UsageError):
            session.kernel.write(session.symbols.address("panic_timeout"), b"x")
    assert run(["write", one_guest.name, "panic_timeout", "00"]) == 2
    assert "--allow-write" in capsys.readouterr().err
    assert run(["write", one_guest.name, "0", "00", "--in-place", "--allow-write"]) == 2


def test_command_pauses_and_shows_what_was_there(
    one_guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    before = panic_timeout(one_guest).to_bytes(4, "little", signed=True).hex()
    arguments = ["write", one_guest.name, "panic_timeout", "--allow-write", "--pause"]
    assert run(["-o", "json", *arguments, "--u32", "99"]) == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert (row["before"], row["data"]) == (before, "63000000")
    assert "the guest stood still for" in captured.err
    assert panic_timeout(one_guest) == 99
    assert run([*arguments, row["before"]]) == 0
    assert not is_tainted(one_guest)
