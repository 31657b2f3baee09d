"""The Xen driver against a Xen of our own making: what a real one does not do on demand."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from virtintrospect_xen import bindings
from virtintrospect_xen.target import XenTarget
from virtintrospect_xen.window import Mapper, Window

from tests.unit.xen.fake import PAGE, FakeDomain, FakeXen, pv_domain
from virtintrospect.cli.main import run
from virtintrospect.driver import Access
from virtintrospect.errors import (
    AccessDeniedError,
    FaultError,
    MemoryAccessError,
    NoSuchTargetError,
    NotWritableError,
    TargetGoneError,
    UsageError,
    VirtIntrospectError,
)
from virtintrospect.memory import Region


def _frames(*ranges: tuple[int, int]) -> dict[int, bytes]:
    """Frames, each filled with its own number."""
    return {
        frame: struct.pack("<512Q", *[frame] * 512)
        for start, end in ranges
        for frame in range(start, end)
    }


@pytest.fixture
def hvm() -> FakeDomain:
    return FakeDomain(_frames((0, 3000), (0xFC000, 0xFC009)), vcpus=128)


@contextmanager
def opened(domain: FakeDomain, *, write: bool = False) -> Iterator[tuple[XenTarget, FakeXen]]:
    with (
        FakeXen({7: domain}).installed() as xen,
        XenTarget(7, Access(write=write)) as target,
    ):
        yield target, xen


def test_regions_are_found_among_holes(hvm: FakeDomain) -> None:
    with opened(hvm) as (target, _):
        assert [(r.start // PAGE, r.end // PAGE) for r in target.memory.regions] == [
            (0, 3000), (0xFC000, 0xFC009),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("there", "found"),
    [
        # The first 2 MiB of a PC, without a first frame, and more holes near a border.
        ([(1, 0xA0), (0xC0, 3000)], [(1, 3000)]),
        ([(0, 1030), (1040, 1050), (2000, 3000)], [(0, 1050), (2000, 3000)]),
        # A balloon has taken what is tried first.
        ([(0, 1000), (1100, 1500), (2100, 2500), (4096, 8192)],
         [(0, 1000), (1100, 1500), (2100, 2500), (4096, 8192)]),
    ],
)  # fmt: skip
def test_regions_of_guests_with_many_holes(
    there: list[tuple[int, int]], found: list[tuple[int, int]]
) -> None:
    domain = FakeDomain(_frames(*there))
    with opened(domain) as (target, _):
        regions = [(r.start // PAGE, r.end // PAGE) for r in target.memory.regions]
        assert regions == found
        resident = [(r.start // PAGE, r.end // PAGE) for r in target.memory.resident()]
        assert resident == there


def test_reads_of_all_kinds_agree(hvm: FakeDomain) -> None:
    with opened(hvm) as (target, _):
        memory = target.memory
        whole = memory.read(5 * PAGE, 2000 * PAGE)  # more than one call
        assert np.frombuffer(whole, "<u8")[::512].tolist() == list(range(5, 2005))
        assert memory.read(6 * PAGE - 8, 16) == struct.pack("<QQ", 5, 6)
        places = [frame * PAGE + 8 for frame in (2999, 3, 0xFC008, 3)]
        assert memory.gather(places, 8) == struct.pack("<4Q", 2999, 3, 0xFC008, 3)
        assert memory.gather_u64(np.array(places, np.uint64)).tolist() == [2999, 3, 0xFC008, 3]


def test_scattered_reads_share_calls(hvm: FakeDomain) -> None:
    with opened(hvm) as (target, xen):
        xen.map_calls.clear()
        target.memory.gather([frame * PAGE for frame in range(0, 1000, 7)], 8)
        assert len(xen.map_calls) <= 2


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.EINVAL, "ballooned out"), (errno.ENOENT, "paged out"), (errno.EIO, "error")],
)
def test_absent_frames_are_told_apart(hvm: FakeDomain, number: int, says: str) -> None:
    hvm.errors[100] = number
    with opened(hvm) as (target, _):
        with pytest.raises(FaultError) as caught:
            target.memory.read(99 * PAGE, 3 * PAGE)
        assert caught.value.address == 100 * PAGE
        assert says in caught.value.hint
        assert target.memory.read(101 * PAGE, 8) == struct.pack("<Q", 101)
        faults: list[int] = []
        found = target.memory.gather([99 * PAGE, 100 * PAGE, 101 * PAGE], 8, faults)
        assert (found, faults) == (struct.pack("<QQQ", 99, 0, 101), [1])
        resident = [(r.start // PAGE, r.end // PAGE) for r in target.memory.resident()]
        assert resident == [(0, 100), (101, 3000), (0xFC000, 0xFC009)]


def test_only_so_much_is_mapped(hvm: FakeDomain) -> None:
    with FakeXen({7: hvm}).installed():
        window = Window(Mapper(7), 3000, limit=512)
        for first in range(0, 3000, 100):
            window.bring(first, first + 100)
            assert sum(window.present) <= 512
            held = np.frombuffer(window.buffer, "<u8")[first * 512 : (first + 100) * 512 : 512]
            assert held.tolist() == list(range(first, first + 100))
        piece = window.buffer[:PAGE]
        window.close()
        assert bytes(piece) == bytes(PAGE)  # no crash for who still looks


def test_what_is_oldest_is_of_the_range_that_is_asked_for(hvm: FakeDomain) -> None:
    """Room is made for a range of which a part is mapped: all of it is there afterwards."""
    with FakeXen({7: hvm}).installed():
        window = Window(Mapper(7), 3000, limit=1024)
        for first, end in ((0, 500), (1000, 1500)):
            window.bring(first, end)
        window.bring(300, 900)
        assert all(window.present[300:900])
        held = np.frombuffer(window.buffer, "<u8")[300 * 512 : 900 * 512 : 512]
        assert held.tolist() == list(range(300, 900))
        assert sum(window.present) <= 1024
        window.close()


def test_domain_0_has_too_little_memory(hvm: FakeDomain) -> None:
    """It maps less at a time then, and says so only where not even one piece can be had."""
    with FakeXen({7: hvm}).installed() as xen:
        window = Window(Mapper(7), 3000)
        xen.window, xen.room = window, 1024
        for first in range(0, 3000, 100):
            window.bring(first, first + 100)
            assert sum(window.present) <= 1024
            held = np.frombuffer(window.buffer, "<u8")[first * 512 : (first + 100) * 512 : 512]
            assert held.tolist() == list(range(first, first + 100))
        assert window._limit < 3000
        window.drop_all()
        assert window._limit >= 3000  # there may be room again
        window._limit, xen.room = 2048, 800
        for first, end in ((0, 300), (600, 900), (100, 700)):
            window.bring(first, end)  # makes room of what is asked for itself
            assert all(window.present[first:end])
        xen.room = 50
        with pytest.raises(OSError, match="memory"):
            window.bring(0, 100)
        assert not any(window.present[:100])
        window.close()


def test_a_balloon_that_moves_drops_what_is_mapped(hvm: FakeDomain) -> None:
    with opened(hvm) as (target, _):
        assert target.memory.read(50 * PAGE, 8) == struct.pack("<Q", 50)
        hvm.frames[50] = bytes(PAGE)
        hvm.pages = 2000
        target.memory._check_at = 0
        assert target.memory.read(50 * PAGE, 8) == bytes(8)


def test_a_balloon_that_is_about_to_move_drops_what_is_mapped(hvm: FakeDomain) -> None:
    """Xen counts as the guest's what is mapped here, so it does not say that the balloon moves."""
    hvm.pages = len(hvm.frames)
    with opened(hvm) as (target, _):
        assert target.memory.read(50 * PAGE, 8) == struct.pack("<Q", 50)
        del hvm.frames[50]
        hvm.max_pages = hvm.pages - 8
        target.memory._check_at = 0
        with pytest.raises(FaultError):
            target.memory.read(50 * PAGE, 8)


def test_what_is_mapped_is_let_go_in_time(hvm: FakeDomain) -> None:
    """A guest that moves its balloon by itself tells nobody."""
    hvm.pages = hvm.max_pages = len(hvm.frames)
    with opened(hvm) as (target, xen):
        assert target.memory.read(50 * PAGE, 8) == struct.pack("<Q", 50)
        target.memory._forget_at -= 15_000_000_000
        target.memory._check_at = 0
        xen.map_calls.clear()
        assert target.memory.read(50 * PAGE, 8) == struct.pack("<Q", 50)
        assert xen.map_calls == []
        del hvm.frames[50]
        target.memory._forget_at -= 15_000_000_000
        target.memory._check_at = 0
        with pytest.raises(FaultError):
            target.memory.read(50 * PAGE, 8)
        assert target.memory.read(51 * PAGE, 8) == struct.pack("<Q", 51)


def test_a_balloon_that_moves_gives_memory_elsewhere(hvm: FakeDomain) -> None:
    """What comes where nothing was is found by who asks for all there is, and while reading."""
    fresh = _frames((8192, 9000))
    with opened(hvm) as (target, xen):
        del hvm.frames[2900]
        hvm.frames |= fresh
        target.memory._check_at = 0
        assert target.memory.read(8192 * PAGE, 8) == struct.pack("<Q", 8192)
        assert Region(8192 * PAGE, 9000 * PAGE) in target.memory.regions
        assert Region(8192 * PAGE, 9000 * PAGE) in list(target.memory.resident())
        xen.map_calls.clear()
        assert target.memory.regions  # nothing has moved since
        assert xen.map_calls == []


def test_the_end_of_a_domain_is_noticed(hvm: FakeDomain) -> None:
    with opened(hvm) as (target, xen):
        target.memory.read(0, 8)
        hvm.flags |= 1
        target.memory._check_at = 0
        with pytest.raises(TargetGoneError, match="has ended"):
            target.memory.read(0, 8)
        del xen.domains[7]
        with pytest.raises(TargetGoneError):
            target.check()


def test_the_number_of_another_domain(hvm: FakeDomain) -> None:
    with opened(hvm) as (target, _):
        hvm.uuid = bytes(16)
        with pytest.raises(TargetGoneError):
            target.check()
    with FakeXen({7: hvm}).installed(), pytest.raises(TargetGoneError, match="another one"):
        XenTarget(7, Access(), "01234567-89ab-cdef-0123-456789abcdef")


def test_registers_of_many_vcpus(hvm: FakeDomain) -> None:
    with opened(hvm) as (target, _):
        assert target.vcpus == 128
        assert [target.registers(n)["rip"] for n in (0, 1, 127)] == [0x1000, 0x1001, 0x107F]
        for wrong in (-1, 128):
            with pytest.raises(NoSuchTargetError):
                target.registers(wrong)


@pytest.mark.parametrize("version", [0x10, 0x15, 0x18])
def test_versions_of_the_interface(hvm: FakeDomain, version: int) -> None:
    with FakeXen({7: hvm}, version).installed(), XenTarget(7, Access()) as target:
        assert target.info.domid == 7


@pytest.mark.parametrize(
    ("domid", "change", "error", "says"),
    [
        (9, {}, NoSuchTargetError, "no domain 9"),
        (0, {}, UsageError, "cannot be looked at from itself"),
        (7, {"flags": 1}, TargetGoneError, "ends just now"),
        (7, {"on_demand": (9, 8)}, MemoryAccessError, "not got its memory yet"),
        (7, {"frames": {5000: b""}, "errors": {5000: errno.EINVAL}}, MemoryAccessError, "built"),
    ],
)
def test_what_cannot_be_opened_leaves_nothing(
    hvm: FakeDomain, domid: int, change: dict[str, object], error: type, says: str
) -> None:
    for name, value in change.items():
        setattr(hvm, name, value)
    with FakeXen({7: hvm, 0: hvm}).installed() as xen:
        with pytest.raises(error) as caught:
            XenTarget(domid, Access())
        assert isinstance(caught.value, VirtIntrospectError)
        assert says in f"{caught.value.message} {caught.value.hint}"
        assert xen.opened == 0


def test_no_privilege(hvm: FakeDomain) -> None:
    with FakeXen({7: hvm}).installed() as xen:
        xen.refuse = errno.EPERM
        with pytest.raises(AccessDeniedError, match="Xen refuses"):
            XenTarget(7, Access())
        assert xen.opened == 0


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_security_module_that_denies(hvm: FakeDomain, number: int) -> None:
    """XSM: nothing at all of one domain, or its memory only."""
    pv, _ = pv_domain(10, 0x50000)
    for domain in (hvm, pv):
        with FakeXen({7: domain, 0: FakeDomain({})}).installed() as xen:
            domain.refuse = number
            with pytest.raises(AccessDeniedError, match="Xen refuses to ask for domain 7"):
                XenTarget(7, Access())
            domain.refuse = 0
            domain.errors = dict.fromkeys(domain.frames, number) | {0: number}
            with pytest.raises(AccessDeniedError, match="Xen refuses this guest's memory"):
                XenTarget(7, Access())
            assert xen.opened == 0


def test_an_unknown_version(hvm: FakeDomain) -> None:
    with FakeXen({7: hvm}, 0x99).installed(), pytest.raises(MemoryAccessError, match="version"):
        XenTarget(7, Access())


def test_pv_frames_both_ways() -> None:
    domain, m2p = pv_domain(1500, 0x50000, holes=(7, 8, 600))
    with FakeXen({7: domain}).installed() as xen:
        xen.m2p = m2p
        with XenTarget(7, Access()) as target:
            memory = target.memory
            assert memory.frames is not None
            for machine, guest in m2p.items():
                assert memory.frames.physical(machine << 12 | 0x123) == guest << 12 | 0x123
            assert memory.frames.physical(0x123456000) >> 51
            assert memory.read(1499 * PAGE, 8) == struct.pack("<Q", 1499)
            with pytest.raises(FaultError):
                memory.read(7 * PAGE, 8)
            resident = [(r.start // PAGE, r.end // PAGE) for r in memory.resident()]
            assert resident == [(0, 7), (9, 600), (601, 1500)]


@pytest.mark.parametrize(
    ("first", "end"),
    [(0, 1), (5, 12), (511, 513), (500, 1100), (1400, 3000), (1500, 1501), (2048, 2050)],
)
def test_machine_frames_of_a_range(first: int, end: int) -> None:
    """Within a page of the guest's table, across its pages, and beyond its end."""
    domain, m2p = pv_domain(1500, 0x50000, holes=(7, 8, 600))
    theirs = {guest: machine for machine, guest in m2p.items()}
    with FakeXen({7: domain}).installed() as xen:
        xen.m2p = m2p
        with XenTarget(7, Access()) as target:
            found = target.memory.machine(range(first, end))
            assert found == [theirs.get(frame, -1) for frame in range(first, end)]


def test_a_pv_guest_that_lies_about_its_frames() -> None:
    """Frames of others, entries that no table has, a list of endless length."""
    domain, m2p = pv_domain(1000, 0x50000)
    with FakeXen({7: domain}).installed() as xen:
        xen.m2p = m2p
        stranger = max(m2p) + 500
        xen.m2p[stranger] = 5  # says that it is the guest's frame 5; the guest's list does not
        with XenTarget(7, Access()) as target:
            frames = target.memory.frames
            assert frames is not None
            assert frames.physical(stranger << 12) >> 51
            assert frames.physical_many(np.array([stranger << 12], np.uint64))[0] >> np.uint64(51)
    info = bytearray(domain.frames[domain.shared_info])
    struct.pack_into("<Q", info, 3088, (1 << 64) - 1)
    domain.frames[domain.shared_info] = bytes(info)
    with FakeXen({7: domain}).installed() as xen:
        xen.m2p = m2p
        with XenTarget(7, Access()) as target:
            assert target.memory.end < 5 << 30
            with pytest.raises(FaultError):
                target.memory.read(4 << 30, 8)


def test_a_pv_guest_exchanges_a_frame() -> None:
    domain, m2p = pv_domain(1000, 0x50000)
    with FakeXen({7: domain}).installed() as xen:
        xen.m2p = m2p
        with XenTarget(7, Access()) as target:
            assert target.memory.read(5 * PAGE, 8) == struct.pack("<Q", 5)
            old = next(machine for machine, guest in m2p.items() if guest == 5)
            fresh = 0x51000
            listed = next(f for f, c in domain.frames.items() if struct.pack("<Q", old) in c[:64])
            changed = domain.frames[listed].replace(
                struct.pack("<Q", old), struct.pack("<Q", fresh)
            )
            domain.frames[listed] = changed
            domain.frames[fresh] = domain.frames.pop(old)[:-8] + b"exchange"
            del m2p[old]
            m2p[fresh] = 5
            assert target.memory.frames is not None
            assert target.memory.frames.physical(fresh << 12) == 5 * PAGE
            target.memory._check_at = 0
            assert target.memory.read(6 * PAGE - 8, 8) == b"exchange"


def test_a_pv_guest_of_32_bits() -> None:
    domain, _ = pv_domain(10, 0x50000)
    domain.bits = 32
    with FakeXen({7: domain}).installed() as xen:
        with pytest.raises(MemoryAccessError, match="of 32 bits"):
            XenTarget(7, Access())
        assert xen.opened == 0


def test_a_pv_guest_that_boots() -> None:
    domain, _ = pv_domain(10, 0x50000)
    domain.frames[domain.shared_info] = bytes(PAGE)
    with FakeXen({7: domain}).installed() as xen:
        with pytest.raises(MemoryAccessError, match="does not say where"):
            XenTarget(7, Access())
        assert xen.opened == 0


def test_writing(hvm: FakeDomain) -> None:
    with opened(hvm) as (target, _), pytest.raises(UsageError, match="not opened for writing"):
        target.write(0, b"x")
    hvm.errors |= {20: errno.EBUSY, 21: errno.ENOMEM}
    with opened(hvm, write=True) as (target, _):
        with pytest.raises(NotWritableError, match="page table"):
            target.write(20 * PAGE, b"x")
        assert target.memory.read(21 * PAGE, 8) == struct.pack("<Q", 21)
        with pytest.raises(NotWritableError, match="shared with other guests"):
            target.write(21 * PAGE, b"x")
        with pytest.raises(FaultError):
            target.write(4000 * PAGE, b"x")
        with pytest.raises(UsageError, match="cr3"):
            target.set_registers(0, {"cr3": 1})


def test_nothing_is_left_open(hvm: FakeDomain) -> None:
    with opened(hvm) as (target, xen):
        assert xen.opened == 2
        target.close()
        assert xen.opened == 0
        target.close()
        with pytest.raises(MemoryAccessError):
            target.memory.read(0, 8)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["ps", "xen:web01"], 4, "Xen"),
        (["-c", "xen:", "list"], 4, "Xen"),
        (["ps", "xen:"], 2, "names no domain"),
        (["ps", "xen:///system"], 2, "-c xen:///system"),
    ],
)
def test_a_machine_that_is_no_xen_host(
    words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if bindings.PRIVCMD.exists():
        pytest.skip("this is one")
    assert run(words) == code
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
