"""What struct page says, in forms that no kernel here has (synthetic)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.unit.built import BASE, BuiltKernel
from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux.pageframes import Frames
from virtintrospect.model.pages import PAGE_KINDS

FRAMES = 1024
ARRAY = 0x10_0000
FLAGS = {"PG_lru": 4, "PG_reserved": 12, "PG_head": 16, "PG_swapbacked": 19, "PG_hwpoison": 22}
UNTYPED = 0xFFFF_FFFF

Pages = Mapping[int, Mapping[str, int]]


def kernel(
    pages: Pages,
    *,
    members: str = "u64 compound_head; u64 dtor; u64 mapping",
    enums: Mapping[str, Mapping[str, int]] | None = None,
    flags: Mapping[str, int] | None = None,
    tail: str = "u64 memcg_data",
) -> BuiltKernel:
    """A kernel with these pages; all others are in use, and of no type."""
    structs = {
        "page": f"u64 flags; {members}; u64 index; u64 private; u32 page_type; "
        f"u32 _refcount; {tail}",
        "address_space": "u64 host; u64 more",
        "inode": "u64 i_mapping; address_space i_data",
    }
    built = BuiltKernel(structs, {"pageflags": {**FLAGS, **(flags or {})}, **(enums or {})})
    built.number("vmemmap_base", BASE + ARRAY)
    for number in range(FRAMES):
        values = {"page_type": UNTYPED, "_refcount": 1, **pages.get(number, {})}
        built.set("page", BASE + ARRAY + 64 * number, values)
    return built


def kinds(built: BuiltKernel, *numbers: int) -> list[str]:
    frames = Frames(built.guest(), FRAMES)
    return [PAGE_KINDS[frames.kind[number]] for number in numbers]


def test_types_as_bytes() -> None:
    """Since 6.12."""
    enums = {"pagetype": {"PGTY_buddy": 240, "PGTY_table": 242, "PGTY_slab": 245}}
    pages = {
        8: {"page_type": 240 << 24, "private": 3, "_refcount": 0},
        20: {"page_type": 242 << 24}, 21: {"page_type": 245 << 24 | 7},
    }  # fmt: skip
    built = kernel(pages, enums=enums)
    assert kinds(built, 7, 8, 15, 16, 20, 21) == [
        "kernel", "free", "free", "kernel", "page_tables", "slab",
    ]  # fmt: skip


def test_types_as_bits_of_an_enum() -> None:
    """6.11 alone."""
    enums = {"pagetype": {"PG_buddy": 0x4000_0000, "PG_table": 0x1000_0000,
                          "PG_slab": 0x0200_0000, "PAGE_TYPE_BASE": 0x8000_0000}}  # fmt: skip
    pages = {
        8: {"page_type": UNTYPED & ~0x4000_0000, "private": 0, "_refcount": 0},
        9: {"page_type": UNTYPED & ~0x1000_0000}, 10: {"page_type": UNTYPED & ~0x0200_0000},
        11: {"page_type": 5},  # mapped six times
    }  # fmt: skip
    built = kernel(pages, enums=enums)
    assert kinds(built, 8, 9, 10, 11) == ["free", "page_tables", "slab", "kernel"]


@pytest.mark.parametrize(("tail", "table"), [("u64 memcg_data", 0x200), ("u64 mem_cgroup", 0x400)])
def test_types_as_bits_without_an_enum(tail: str, table: int) -> None:
    """Until 6.10; PG_kmemcg stood before PG_table until 5.10."""
    pages = {8: {"page_type": UNTYPED & ~0x80, "_refcount": 0}, 9: {"page_type": UNTYPED & ~table}}
    built = kernel(pages, flags={"PG_slab": 9}, tail=tail)
    assert kinds(built, 8, 9, 10) == ["free", "page_tables", "kernel"]


def test_slab_as_a_flag_of_the_first_page() -> None:
    first = BASE + ARRAY + 64 * 8
    pages = {8: {"flags": 1 << 9 | 1 << 16}, 9: {"compound_head": first + 1},
             10: {"compound_head": first + 1}}  # fmt: skip
    assert kinds(kernel(pages, flags={"PG_slab": 9}), 8, 9, 10, 11) == [
        "slab", "slab", "slab", "kernel",
    ]  # fmt: skip


def test_huge_pages_by_the_second_page() -> None:
    """Its flag since 6.6; its destructor before."""
    first = BASE + ARRAY + 64 * 8
    tail = {"compound_head": first + 1}
    pages = {8: {"flags": 1 << 16, "_refcount": 0}, 9: {**tail, "flags": 1 << 7}, 10: tail}
    built = kernel(pages, flags={"PG_slab": 9, "PG_hugetlb": 7})
    assert kinds(built, 8, 9, 10, 11) == ["hugetlb", "hugetlb", "hugetlb", "kernel"]
    pages[9] = {**tail, "compound_dtor": 2}
    members = "u64 compound_head; u64 compound_dtor; u64 mapping"
    built = kernel(pages, members=members, flags={"PG_slab": 9})
    assert kinds(built, 8, 9, 10, 11) == ["hugetlb", "hugetlb", "hugetlb", "kernel"]


def test_larger_pages_by_the_bits_of_their_address() -> None:
    """Since 7.1: what the addresses of all pages of a larger one share."""
    mask = {"compound_info": -(64 * 4) % (1 << 64) | 1}
    pages = {8: {"mapping": 0x1001}, 9: mask, 10: mask, 11: mask}
    built = kernel(pages, members="u64 compound_info; u64 dtor; u64 mapping")
    assert kinds(built, 8, 9, 11, 12) == ["anonymous", "anonymous", "anonymous", "kernel"]


def test_a_mapping_is_believed_if_its_inode_leads_back() -> None:
    built = kernel({})
    inode = built.make("inode")
    mapping = built.at("inode", inode, "i_data")
    built.set("inode", inode, {"i_mapping": mapping})
    built.write(mapping, inode.to_bytes(8, "little"))
    for number, values in {
        8: {"mapping": mapping}, 9: {"mapping": mapping, "flags": 1 << 19},
        10: {"mapping": inode + 8 + 16}, 11: {"mapping": 0x1234_5678},
        12: {"mapping": mapping, "flags": 1 << 22}, 13: {"flags": 1 << 12}, 14: {"_refcount": 0},
    }.items():  # fmt: skip
        built.set("page", BASE + ARRAY + 64 * number, values)
    assert kinds(built, 8, 9, 10, 11, 12, 13, 14) == [
        "file", "shared", "kernel", "kernel", "poisoned", "reserved", "free_percpu",
    ]  # fmt: skip


def test_an_array_of_all_pages_ends() -> None:
    """With CONFIG_FLATMEM something else follows: it is no page."""
    built = kernel({})
    built.number("mem_map", BASE + ARRAY)
    built.number("max_mapnr", 100)
    assert kinds(built, 99, 100, 128, 200) == ["kernel", "absent", "absent", "absent"]
    built = kernel({})
    built.number("mem_map", 0)  # there, and not used: CONFIG_SPARSEMEM without CONFIG_NUMA
    assert kinds(built, 99, 200) == ["kernel", "kernel"]


def test_heads_and_orders_that_lead_nowhere() -> None:
    pages = {
        8: {"compound_head": 1}, 9: {"compound_head": (1 << 64) - 1},
        10: {"page_type": UNTYPED & ~0x80, "private": 1 << 60},
        1023: {"page_type": UNTYPED & ~0x80, "private": 19},
    }  # fmt: skip
    assert kinds(kernel(pages), 10, 1023) == ["free", "free"]


def test_a_member_where_none_can_be() -> None:
    with pytest.raises(CorruptDataError, match="compound_head at offset"):
        kinds(kernel({}, members="u32 x; u32 compound_head; u64 dtor; u64 mapping"), 0)
