"""Slab caches of guests that lie, built by hand."""

from __future__ import annotations

import pytest

from tests.unit.built import BASE, SIZE, built_guest
from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import Blob
from virtintrospect.errors import NotFoundError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.symbols.btf import Btf

HEAD, CACHE, NODE, SLABS = BASE + 0x8000, BASE + 0x9000, BASE + 0xA000, BASE + 0x10000
#: Offsets of our own kernel.
LIST, NODES, PARTIAL = 24, 40, 24


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(SIZE)


@pytest.fixture
def guest(memory: BuiltMemory) -> LinuxGuest:
    blob = Blob()
    long, int_ = blob.integer("long", 8), blob.integer("int", 4)
    head = blob.struct("list_head", 16, [("next", long, 0, 0), ("prev", long, 64, 0)])
    signed = blob.integer("s64", 8, signed=True)
    counter = blob.struct("atomic_long_t", 8, [("counter", signed, 0, 0)])
    orders = blob.struct("kmem_cache_order_objects", 4, [("x", int_, 0, 0)])
    blob.struct(
        "kmem_cache",
        64,
        [
            ("name", long, 0, 0),
            ("size", int_, 64, 0),
            ("oo", orders, 96, 0),
            ("list", head, LIST * 8, 0),
            ("node", blob.array(long, 2), NODES * 8, 0),
        ],
    )
    blob.struct(
        "kmem_cache_node",
        64,
        [
            ("nr_slabs", counter, 0, 0),
            ("total_objects", counter, 64, 0),
            ("nr_partial", long, 128, 0),
            ("partial", head, PARTIAL * 8, 0),
        ],
    )
    blob.struct(
        "slab",
        64,
        [
            ("slab_cache", long, 0, 0),
            ("slab_list", head, 64, 0),
            ("objects", int_, 192, 0),
            ("inuse", int_, 224, 0),
        ],
    )
    memory.write_u64(48, BASE)
    addresses = {"page_offset_base": BASE + 48, "slab_caches": HEAD}
    guest = built_guest(memory, addresses, Btf.parse(blob.build()))
    memory.write(0x7000, b"dentry\0")
    memory.write_u64(HEAD - BASE, CACHE + LIST, CACHE + LIST)
    memory.write_u64(CACHE - BASE, BASE + 0x7000, 192 | (1 << 16 | 42) << 32)
    memory.write_u64(CACHE + LIST - BASE, HEAD, HEAD, NODE)
    slabs(memory, 2)
    return guest


def slabs(memory: BuiltMemory, count: int, owner: int = CACHE) -> list[int]:
    """Partial slabs, in each of which 40 of 42 objects are in use."""
    found = [SLABS + 64 * number for number in range(count)]
    head = NODE + PARTIAL
    memory.write_u64(NODE - BASE, max(5, count), 210, count)
    for node, following in zip([head, *(s + 8 for s in found)], [*found, 0], strict=True):
        memory.write_u64(node - BASE, following + 8 if following else head, 0)
    for slab in found:
        memory.write_u64(slab - BASE, owner)
        memory.write_u64(slab + 24 - BASE, 42 | 40 << 32)
    return found


def test_a_cache(guest: LinuxGuest) -> None:
    (row,) = guest.slabs()
    assert (row.name, row.objsize, row.objperslab, row.pagesperslab) == (b"dentry", 192, 42, 2)
    assert (row.active_objs, row.num_objs, row.num_slabs) == (206, 210, 5)
    assert row.size == 5 * 2 * 4096
    assert guest.take_problems() == []


def test_a_list_in_a_circle(guest: LinuxGuest, memory: BuiltMemory) -> None:
    found = slabs(memory, 10)
    memory.write_u64(found[-1] + 8 - BASE, found[3] + 8)
    (row,) = guest.slabs()
    assert row.active_objs == 190
    assert "cycle" in guest.take_problems()[0].what


@pytest.mark.parametrize("mended", [True, False])
def test_a_slab_that_goes_to_the_end_of_its_list(
    guest: LinuxGuest, memory: BuiltMemory, monkeypatch: pytest.MonkeyPatch, *, mended: bool
) -> None:
    """It is met twice while the guest runs, and is no damage unless it is so the next time."""
    found = slabs(memory, 10)
    memory.write_u64(found[-1] + 8 - BASE, found[0] + 8)
    expired = []

    def expire() -> None:
        expired.append(True)
        if mended:
            slabs(memory, 10)

    monkeypatch.setattr(guest, "live", True)
    monkeypatch.setattr(guest.memory, "expire", expire)
    (row,) = guest.slabs()
    assert row.active_objs == 190
    assert expired
    assert [problem.what for problem in guest.take_problems()] == (
        [] if mended else ["chain with a cycle"]
    )


def test_slabs_of_another_cache_do_not_count(guest: LinuxGuest, memory: BuiltMemory) -> None:
    slabs(memory, 10, owner=CACHE + 64)
    (row,) = guest.slabs()
    assert row.active_objs == 210


def test_more_free_objects_than_there_are(guest: LinuxGuest, memory: BuiltMemory) -> None:
    found = slabs(memory, 3)
    memory.write_u64(found[0] + 24 - BASE, 0xFFFF_FFFF)
    (row,) = guest.slabs()
    assert row.active_objs == 0


def test_a_cache_that_cannot_be_read(guest: LinuxGuest, memory: BuiltMemory) -> None:
    memory.write_u64(CACHE - BASE, 0xDEAD_0000_0000_0000)
    assert guest.slabs() == []
    assert guest.take_problems()[0].address == CACHE
    memory.write_u64(CACHE - BASE, BASE + 0x7000, 0xFFFF_FFFF << 32)
    assert guest.slabs() == []


def test_counters_below_zero_and_nodes_out_of_reach(guest: LinuxGuest, memory: BuiltMemory) -> None:
    memory.write_u64(NODE - BASE, 5, (1 << 64) - 1, 2)
    (row,) = guest.slabs()
    assert (row.active_objs, row.num_slabs) == (0, 5)
    memory.write_u64(NODE - BASE, 5, 210, 6)
    (row,) = guest.slabs()
    assert row.active_objs is None
    assert "impossible" in guest.take_problems()[0].what
    memory.write_u64(CACHE + NODES - BASE, 0xDEAD_0000_0000_0000)
    (row,) = guest.slabs()
    assert (row.active_objs, row.num_objs, row.num_slabs) == (None, None, None)


def test_another_allocator(memory: BuiltMemory) -> None:
    memory.write_u64(48, BASE)
    guest = built_guest(memory, {"page_offset_base": BASE + 48}, Btf.parse(Blob().build()))
    with pytest.raises(NotFoundError, match="SLUB"):
        guest.slabs()
