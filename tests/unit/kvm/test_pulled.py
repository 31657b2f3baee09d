"""Memory of which each read is a slow call: what is asked for, how often, and what is kept."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from virtintrospect_kvm.pulled import BLOCK, PulledMemory

from virtintrospect.errors import FaultError, MemoryAccessError
from virtintrospect.memory import Region

MIB = 1 << 20
#: The second touches the first; the third begins within a block; the last has an odd size.
REGIONS = (
    Region(0, 0xA0000),
    Region(0xA0000, MIB),
    Region(MIB + 0x3000, 8 * MIB),
    Region(16 * MIB, 16 * MIB + 0x1234),
)


class Source:
    """Bytes that tell their address, and a list of what was asked for."""

    def __init__(self, most: int = MIB) -> None:
        self.most = most
        self.asked: list[tuple[int, int]] = []
        self.hole = range(0)
        self.closed = 0
        self.data = random.Random(7).randbytes(17 * MIB)

    def fetch(self, paddr: int, size: int) -> bytes:
        assert size <= self.most
        assert any(r.start <= paddr and paddr + size <= r.end for r in REGIONS)
        self.asked.append((paddr, size))
        if paddr < self.hole.stop and paddr + size > self.hole.start:
            raise FaultError(paddr, size)
        return self.data[paddr : paddr + size]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def memory(source: Source) -> Iterator[PulledMemory]:
    with PulledMemory(REGIONS, source.fetch, lambda: source.most, source.close) as opened:
        yield opened


def test_any_range_is_right(source: Source, memory: PulledMemory) -> None:
    chance = random.Random(1)
    for _ in range(500):
        region = chance.choice(REGIONS)
        paddr = chance.randrange(region.start, region.end)
        size = min(chance.choice((1, 8, 100, 5000, 200_000)), region.end - paddr)
        assert memory.read(paddr, size) == source.data[paddr : paddr + size]
    assert memory.read(0x9FFFC, 8) == source.data[0x9FFFC:0xA0004]
    assert memory.read(2 * MIB, 5 * MIB) == source.data[2 * MIB : 7 * MIB]
    assert memory.read_u64(0x2001) == int.from_bytes(source.data[0x2001:0x2009], "little")
    for outside in (MIB, 0xFFFFC, 8 * MIB - 4, 16 * MIB + 0x1230, 1 << 40):
        with pytest.raises(FaultError):
            memory.read(outside, 8)


def test_gather_is_right(source: Source, memory: PulledMemory) -> None:
    chance = random.Random(2)
    for size in (1, 8, 300, BLOCK + 5, 5 * MIB):
        paddrs = [chance.randrange(17 * MIB) for _ in range(3 if size > MIB else 300)]
        faults: list[int] = []
        found = memory.gather(paddrs, size, faults)
        for position, paddr in enumerate(paddrs):
            piece = found[position * size : (position + 1) * size]
            try:
                expected = memory.read(paddr, size)
            except FaultError:
                assert position in faults
                assert piece == bytes(size)
            else:
                assert position not in faults
                assert piece == expected == source.data[paddr : paddr + size]
    with pytest.raises(FaultError):
        memory.gather([0, MIB], 8)
    numbers = memory.gather_u64(np.array([8, 16, MIB], dtype=np.uint64))
    assert numbers[2] == 0
    assert memory.gather([], 8) == b""


def test_neighbours_come_along(source: Source, memory: PulledMemory) -> None:
    memory.read(0x5008, 8)
    assert source.asked == [(0, BLOCK)]
    memory.read(0x6000, 4096)
    memory.gather([0x10, 0xFFF0], 16)
    assert len(source.asked) == 1
    assert memory.calls == 1
    # Small gaps are read along, a large one is not; no call is larger than allowed.
    memory.gather([2 * MIB, 2 * MIB + 2 * BLOCK, 4 * MIB], 8)
    assert source.asked[1:] == [(2 * MIB, 3 * BLOCK), (4 * MIB, BLOCK)]
    source.most = BLOCK
    memory.gather([5 * MIB, 5 * MIB + BLOCK], 8)
    assert source.asked[3:] == [(5 * MIB, BLOCK), (5 * MIB + BLOCK, BLOCK)]


def test_what_is_foreseen_is_read_once(source: Source, memory: PulledMemory) -> None:
    assert memory.slow
    memory.prefetch([2 * MIB, 2 * MIB + BLOCK, 1 << 50], 4096)
    assert len(source.asked) == 1
    memory.read(2 * MIB + 8, 8)
    memory.read(2 * MIB + BLOCK, 8)
    assert len(source.asked) == 1


@pytest.mark.parametrize("how", ["age", "expire", "forget"])
def test_old_bytes_are_read_again(
    source: Source, memory: PulledMemory, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    clock = 1000.0
    monkeypatch.setattr("virtintrospect_kvm.pulled.time.monotonic", lambda: clock)
    memory.read(0, 8)
    clock += memory.age * 0.9
    memory.read(0, 8)
    assert len(source.asked) == 1
    source.data = bytes(17 * MIB)
    if how == "age":
        clock += memory.age * 0.2
    else:
        getattr(memory, how)()
    assert memory.read(0, 8) == bytes(8)
    assert len(source.asked) == 2


def test_nothing_is_kept_at_age_zero(source: Source, memory: PulledMemory) -> None:
    memory.age = 0
    memory.gather([0, 8, 16], 8)
    assert len(source.asked) == 1
    memory.read(0, 8)
    assert len(source.asked) == 2


def test_a_hole_costs_only_itself(source: Source, memory: PulledMemory) -> None:
    source.hole = range(2 * MIB + BLOCK, 2 * MIB + BLOCK + 10)
    paddrs = [2 * MIB, 2 * MIB + BLOCK, 2 * MIB + 2 * BLOCK]
    faults: list[int] = []
    found = memory.gather(paddrs, 8, faults)
    assert faults == [1]
    assert found[:8] == source.data[2 * MIB : 2 * MIB + 8]
    assert found[16:] == source.data[2 * MIB + 2 * BLOCK :][:8]
    with pytest.raises(FaultError):
        memory.read(paddrs[1], 8)


def test_blocks_are_no_larger_than_calls() -> None:
    source = Source(most=64 << 10)
    with PulledMemory(REGIONS, source.fetch, lambda: source.most, source.close) as memory:
        memory.read(2 * MIB, 200_000)
        assert source.asked == [(2 * MIB + at, 64 << 10) for at in range(0, 200_000, 64 << 10)]


def test_what_is_kept_is_bounded(source: Source, memory: PulledMemory) -> None:
    memory._room = 8
    for paddr in range(2 * MIB, 7 * MIB, BLOCK):
        assert memory.read(paddr, 8) == source.data[paddr : paddr + 8]
        assert len(memory._blocks) <= 8
    paddrs = list(range(2 * MIB, 7 * MIB, BLOCK))
    assert memory.gather(paddrs, 8) == b"".join(source.data[p : p + 8] for p in paddrs)
    assert len(memory._blocks) <= 8
    faults: list[int] = []
    memory.gather([*paddrs, MIB], 8, faults)
    assert faults == [len(paddrs)]


def test_short_answers_and_closing(source: Source, memory: PulledMemory) -> None:
    memory._fetch = lambda _paddr, _size: b"short"
    with pytest.raises(MemoryAccessError, match="5 bytes came of guest address 0x0"):
        memory.read(0, 8)
    memory.close()
    memory.close()
    assert source.closed == 1
    with pytest.raises(MemoryAccessError, match="closed"):
        memory.read(0, 8)
