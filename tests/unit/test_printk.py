"""The log before 5.10, which no kernel here has, and the ring's rules for those who follow it."""

from __future__ import annotations

import struct

import pytest

from tests.unit.built import BASE, BuiltKernel
from tests.unit.images import BuiltMemory
from virtintrospect.errors import CorruptDataError, FaultError, VirtIntrospectError
from virtintrospect.guests.linux import printk_ring
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.printk import records

LOG = 0x10_0000
LOG_SIZE = 1 << 16
HEADER = struct.Struct("<QHHHBB")
#: struct printk_log of 5.1 and later with CONFIG_PRINTK_CALLER.
CALLER = {
    "printk_log": "u64 ts_nsec; u16 len; u16 text_len; u16 dict_len; u8 facility; u8 flags:5;"
    " u8 level:3; u32 caller_id"
}


class OldLog:
    """A guest with nothing but the log of 3.11 to 5.9."""

    def __init__(self, structs: dict[str, str] | None = None) -> None:
        self.kernel = BuiltKernel(structs)
        self.head = 20 if structs else 16
        self.end = 0

    @property
    def memory(self) -> BuiltMemory:
        return self.kernel.memory

    def put(
        self, text: bytes, *, at: int | None = None, extra: bytes = b"", level: int = 6,
        facility: int = 0, length: int = 0, claimed: int = 0, flags: int = 0,
    ) -> None:  # fmt: skip
        """A record; ``length`` and ``claimed`` (of the text) may lie."""
        position = self.end if at is None else at
        length = length or -(-(self.head + len(text) + len(extra)) // 4) * 4
        head = HEADER.pack(
            position * 1000, length, claimed or len(text), len(extra), facility, level << 5 | flags
        )
        self.memory.write(LOG + position, head.ljust(self.head, b"\0") + text + extra)
        self.end = position + length

    def guest(
        self, first: int = 0, end: int | None = None, *, size: int = LOG_SIZE, count: int = 0
    ) -> LinuxGuest:
        kernel = self.kernel
        kernel.number("log_buf", BASE + LOG)
        kernel.number("log_buf_len", size, 4)
        kernel.number("log_first_idx", first, 4)
        kernel.number("log_next_idx", self.end if end is None else end, 4)
        kernel.number("log_first_seq", 7)
        kernel.number("log_next_seq", 7 + count)
        return kernel.guest()


@pytest.fixture
def log() -> OldLog:
    return OldLog()


def texts(guest: LinuxGuest) -> list[bytes]:
    return [record.text for record in records(guest)]


@pytest.mark.parametrize("structs", [None, CALLER])
def test_records(structs: dict[str, str] | None) -> None:
    log = OldLog(structs)
    log.put(b"one", level=3, facility=1)
    log.put(b"two\nlines", extra=b"SUBSYSTEM=pci\0DEVICE=+pci:0000:00:02.0", flags=2)
    log.put(b"")
    found = records(log.guest())
    assert [(r.text, r.sequence, r.level, r.facility) for r in found] == [
        (b"one", 7, "err", "user"), (b"two\nlines", 8, "info", "kern"), (b"", 9, "info", "kern"),
    ]  # fmt: skip
    assert found[0].time == 0.0
    assert found[1].time == pytest.approx(log.head * 1e-6 + 4e-6)


def test_wraps_where_a_record_of_length_0_is(log: OldLog) -> None:
    first = LOG_SIZE - 64
    log.put(b"last of the buffer", at=first)  # what follows is zero: go on at the start
    log.put(b"first of the buffer", at=0)
    assert texts(log.guest(first)) == [b"last of the buffer", b"first of the buffer"]


def test_an_empty_log(log: OldLog) -> None:
    log.put(b"not any more", at=0)
    assert texts(log.guest(64, 64)) == []


@pytest.mark.parametrize("first", [0, 16, LOG_SIZE - 16, LOG_SIZE, 0xFFFF_FFFF])
def test_never_ends(log: OldLog, first: int) -> None:
    """Zeros from where it begins, and no record at the start either."""
    log.memory.write(LOG + LOG_SIZE // 2, b"not all of it is zero")
    log.memory.write(LOG, b"\1")
    assert texts(log.guest(first, 12345)) == []
    log.memory.write(LOG, b"\0")
    assert texts(log.guest(first, 12345)) == []


def test_runs_in_a_circle(log: OldLog) -> None:
    """Records fill the buffer to its end and lead back to its start, past where it ends."""
    log.put(b"", at=0, length=LOG_SIZE - 32, claimed=40_000)
    found = records(log.guest(0, 12345))
    assert len(found) == 1
    assert sum(len(record.text) for record in found) <= LOG_SIZE


@pytest.mark.parametrize(
    ("length", "claimed"), [(16, 0xFFFF), (8, 0), (15, 0), (20, 5), (0xFFFF, 0xFFF0)]
)
def test_lying_lengths(log: OldLog, length: int, claimed: int) -> None:
    log.put(b"good")
    at = LOG_SIZE - 1024 if length == 0xFFFF else log.end
    first = at if length == 0xFFFF else 0
    log.put(b"bad", at=at, length=length, claimed=claimed)
    log.put(b"", at=at + 64)
    guest = log.guest(first, 12345)
    assert texts(guest) == ([] if first else [b"good"])
    assert "impossible length" in guest.take_problems()[-1].what


def test_dictionary_longer_than_its_record(log: OldLog) -> None:
    log.put(b"text", extra=b"K=V" * 10, length=24)
    guest = log.guest(0, 12345)
    assert texts(guest) == []


def test_overlapping_records(log: OldLog) -> None:
    for position in range(0, LOG_SIZE - 64, 16):
        log.put(b"", at=position, length=16, claimed=0xFFFF)
    assert texts(log.guest(0, 12345)) == []


@pytest.mark.parametrize("size", [0, 1 << 31, 0xFFFF_FFFF])
def test_absurd_size(log: OldLog, size: int) -> None:
    with pytest.raises(CorruptDataError):
        records(log.guest(size=size))


def test_buffer_that_is_not_there(log: OldLog) -> None:
    guest = log.guest()
    log.kernel.write(log.kernel.symbols["log_buf"], bytes(8))
    with pytest.raises(FaultError):
        records(guest)


def test_a_kernel_without_any_log() -> None:
    with pytest.raises(VirtIntrospectError):
        records(BuiltKernel().guest())


def test_old_log_that_is_followed(log: OldLog) -> None:
    for text in (b"a", b"b", b"c"):
        log.put(text)
    guest = log.guest(count=3)
    assert [r.text for r in guest.dmesg(after=-1)] == [b"a", b"b", b"c"]
    assert [r.text for r in guest.dmesg(after=7)] == [b"b", b"c"]
    assert guest.dmesg(after=9) == []
    # The log of another boot does not reach so far: all of it is new.
    assert [r.text for r in guest.dmesg(after=500)] == [b"a", b"b", b"c"]


# -- the ring of 5.10, as those see it who follow it ------------------------------------------

RING = {
    "prb_data_blk_lpos": "u64 begin; u64 next",
    "atomic_long_t": "long counter",
    "prb_desc": "atomic_long_t state_var; prb_data_blk_lpos text_blk_lpos",
    "printk_info": "u64 seq; u64 ts_nsec; u16 text_len; u8 facility; u8 flags:5; u8 level:3",
    "prb_desc_ring": "u32 count_bits; prb_desc *descs; printk_info *infos; atomic_long_t head_id;"
    " atomic_long_t tail_id",
    "prb_data_ring": "u32 size_bits; char *data",
    "printk_ringbuffer": "prb_desc_ring desc_ring; prb_data_ring text_data_ring",
}
COUNT_BITS, SIZE_BITS = 3, 12
COUNT = 1 << COUNT_BITS
RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)


def _id(sequence: int) -> int:
    return (1 << 32) - COUNT + sequence


class Ring:
    """A ring of 8 descriptors; record n has the id n - 8U, as the kernel numbers them."""

    def __init__(self) -> None:
        self.kernel = kernel = BuiltKernel(RING)
        self.descs = kernel.room(COUNT * 24)
        self.infos = kernel.room(COUNT * kernel.types.sizeof("printk_info"))
        self.data = kernel.room(1 << SIZE_BITS)
        self.ring = kernel.make("printk_ringbuffer", {
            "desc_ring.count_bits": COUNT_BITS, "desc_ring.descs": self.descs,
            "desc_ring.infos": self.infos, "text_data_ring.size_bits": SIZE_BITS,
            "text_data_ring.data": self.data,
        })  # fmt: skip
        kernel.number("prb", self.ring)
        self.newest = -1
        self._lpos = 0

    def add(self, text: bytes, state: int = FINALIZED) -> None:
        self.newest += 1
        number = _id(self.newest)
        slot = number % COUNT
        size = -(-(8 + len(text)) // 8) * 8
        self.kernel.write(self.data + self._lpos, number.to_bytes(8, "little") + text)
        self.kernel.set("printk_info", self.infos + slot * 24, {
            "seq": self.newest, "ts_nsec": self.newest, "text_len": len(text),
        })  # fmt: skip
        self.kernel.set("prb_desc", self.descs + slot * 24, {
            "state_var.counter": state << 62 | number, "text_blk_lpos.begin": self._lpos,
            "text_blk_lpos.next": self._lpos + size,
        })  # fmt: skip
        self._lpos += size
        self.kernel.set("printk_ringbuffer", self.ring, {
            "desc_ring.head_id.counter": number,
            "desc_ring.tail_id.counter": _id(max(0, self.newest - COUNT + 1)),
        })  # fmt: skip

    def state(self, sequence: int, state: int) -> None:
        number = _id(sequence)
        value = state << 62 | number
        self.kernel.write(self.descs + number % COUNT * 24, value.to_bytes(8, "little"))


def after(ring: Ring, sequence: int | None) -> list[int]:
    return [record.sequence for record in ring.kernel.guest().dmesg(sequence)]


def test_only_what_is_new() -> None:
    ring = Ring()
    for number in range(5):
        ring.add(b"record %d" % number)
    assert after(ring, None) == after(ring, -1) == [0, 1, 2, 3, 4]
    assert after(ring, 2) == [3, 4]
    assert after(ring, 4) == []
    for number in range(5, 21):
        ring.add(b"record %d" % number)
    assert after(ring, 19) == [20]
    assert after(ring, 4) == list(range(13, 21))  # the others are overwritten
    assert after(ring, 1000) == list(range(13, 21))  # another boot's
    assert after(ring, 1 << 40) == list(range(13, 21))


def test_what_is_old_is_not_read_again() -> None:
    ring = Ring()
    for number in range(5):
        ring.add(b"record %d" % number)
    ring.kernel.set("printk_info", ring.infos + 2 * 24, {"seq": 100, "text_len": 8})
    assert after(ring, 4) == []
    assert after(ring, 3) == [4]


@pytest.mark.parametrize("state", [RESERVED, COMMITTED])
def test_who_follows_waits_for_a_record_that_is_being_written(state: int) -> None:
    ring = Ring()
    for number in range(5):
        ring.add(b"record %d" % number)
    ring.state(3, state)
    assert after(ring, -1) == [0, 1, 2]
    assert after(ring, 2) == []
    assert after(ring, None) == ([0, 1, 2, 3, 4] if state == COMMITTED else [0, 1, 2, 4])
    ring.state(3, FINALIZED)
    assert after(ring, 2) == [3, 4]


def test_who_follows_passes_over_what_is_lost() -> None:
    ring = Ring()
    for number in range(5):
        ring.add(b"record %d" % number)
    ring.state(3, REUSABLE)
    assert after(ring, 2) == [4]


@pytest.mark.parametrize("part", ["descs", "infos", "data"])
def test_slot_that_is_used_anew_while_it_is_read(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the old record and half of the new one are no record."""
    ring = Ring()
    for number in range(COUNT):
        ring.add(b"record %d" % number)
    guest = ring.kernel.guest(live=True)
    plain = BuiltMemory._read_within
    where = {"descs": ring.descs, "infos": ring.infos, "data": ring.data}[part] - BASE
    waiting = [b"much newer one"]

    def read(memory: BuiltMemory, index: int, paddr: int, size: int) -> bytes:
        found = plain(memory, index, paddr, size)
        if waiting and paddr <= where < paddr + size:
            ring.add(waiting.pop())
        return found

    monkeypatch.setattr(BuiltMemory, "_read_within", read)
    found = guest.dmesg()
    assert not waiting
    assert [record.text for record in found] == [b"record %d" % n for n in range(1, COUNT)]
    assert [record.sequence for record in found] == list(range(1, COUNT))


@pytest.mark.parametrize("at_once", [1, 3, 7, 8, 100])
def test_records_are_read_some_at_a_time(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtintrospect.guests.linux.printk_ring._AT_ONCE", at_once)
    ring = Ring()
    for number in range(21):
        ring.add(b"record %d" % number)
    assert after(ring, None) == list(range(13, 21))
    assert after(ring, 17) == [18, 19, 20]


def test_newest_of_too_many_records(log: OldLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records without text cost memory, too."""
    monkeypatch.setattr("virtintrospect.guests.linux.printk_records.MAX_RECORDS", 3)
    monkeypatch.setattr("virtintrospect.guests.linux.printk_ring.MAX_RECORDS", 3)
    ring = Ring()
    for number in range(5):
        log.put(b"record %d" % number)
        ring.add(b"record %d" % number)
    for guest, first in ((log.guest(), 7), (ring.kernel.guest(), 0)):
        assert [record.sequence - first for record in guest.dmesg()] == [2, 3, 4]
        assert any("only the newest 3 of" in problem.what for problem in guest.take_problems())


@pytest.mark.parametrize(
    ("begin", "following", "where"),
    [
        (64, 96, 64),
        (232, 256 + 32, 0),  # its text would have crossed the end
        (224, 256, 224),  # ends exactly at the end, as kernels since 6.19 have it
        (224, 256 + 32, 0),  # the same as older kernels have it
    ],
)
def test_block_at_the_end_of_the_ring(begin: int, following: int, where: int) -> None:
    """What wraps around leaves its id, but an older text, where it would have begun."""
    wanted = 77
    text = bytearray(256)
    for at in (0, begin):
        body = b"right" if at == where else b"wrong"
        text[at : at + 13] = wanted.to_bytes(8, "little") + body
    assert printk_ring._block(bytes(text), begin, following, wanted, 5) == b"right"
