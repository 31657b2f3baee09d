"""The kernel's array of ``struct page``, in bulk, and what each entry says of its page.

What a page is used for is spread over ``flags``, ``page_type``, ``mapping`` and ``_refcount``
(include/linux/page-flags.h, fs/proc/page.c). Only the first page of a larger one says it; the
others lead to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.errors import CorruptDataError, TypeNotFoundError
from virtintrospect.guests.linux.pagecache import page_array
from virtintrospect.model.pages import PAGE_KINDS

if TYPE_CHECKING:
    import numpy.typing as npt

    from virtintrospect.guests.linux.guest import LinuxGuest

    Array = npt.NDArray[Any]

#: Bytes that the array's own memory is looked up by.
_STEP = 4096
#: Frames that are looked at together. No larger page crosses such a border: 1 GiB is aligned.
_AT_ONCE = 1 << 18
#: MAX_PAGE_ORDER is 10; some architectures have more.
_MAX_ORDER = 20
#: Types as single bits that are cleared, until 6.10: PAGE_TYPE_BASE and PG_* of page-flags.h.
_BASE = 0xF000_0000
_CLEARED = {"buddy": 0x80, "offline": 0x100, "table": 0x200, "hugetlb": 0x800}
#: Until 5.10 PG_kmemcg stood before PG_table (commit 18b2db3b0385).
_CLEARED_KMEMCG = {"buddy": 0x80, "offline": 0x100, "table": 0x400}
#: PAGE_MAPPING_ANON, PAGE_MAPPING_MOVABLE.
_ANON, _MOVABLE = 1, 2
#: HUGETLB_PAGE_DTOR of ``enum compound_dtor_id``.
_HUGETLB_DTOR = 2

KIND = {name: number for number, name in enumerate(PAGE_KINDS)}


class Frames:
    """What ``struct page`` tells of a guest's page frames.

    :param guest: the guest.
    :param count: how many frames to look at, from the first one on.
    :raises CorruptDataError: the kernel's types make no sense.
    """

    def __init__(self, guest: LinuxGuest, count: int) -> None:
        import numpy as np

        self._guest = guest
        self._base, self._size = page_array(guest)
        self._page = guest.page_size
        self.count = count
        # One array of all pages (CONFIG_FLATMEM) has something else before and behind it.
        flat = "mem_map" in guest.symbols and guest.pointer("mem_map")
        self._first = min(guest.machine.first_frame(guest), count) if flat else 0
        self._end = self._first + guest.pointer("max_mapnr") if flat else count
        self.kind = np.full(count, KIND["absent"], dtype=np.uint8)
        self.flags = np.zeros(count, dtype=np.uint64)
        #: Where the array lies: its virtual addresses.
        self.place = tuple(self._base + frame * self._size for frame in (self._first, count))
        #: Frames that hold it.
        self.memmap: Array = np.empty(0, dtype=np.uint64)
        self._bits = guest.types.enumerators("pageflags")
        self._at = {
            name: _offset(guest, *paths)
            for name, paths in {
                "flags": ("flags",),
                "head": ("compound_head", "compound_info"),  # the second since 7.1
                "type": ("page_type",),
                "mapping": ("mapping",),
                "count": ("_refcount",),
                "private": ("private",),
            }.items()
        }
        for start in range(self._first // _AT_ONCE * _AT_ONCE, count, _AT_ONCE):
            self._look(start, min(_AT_ONCE, count - start))

    def _look(self, start: int, count: int) -> None:
        """Read and judge a part of the array."""
        import numpy as np

        raw, there = self._read(start, count)
        word = self._guest.types.pointer_size
        words = raw.view(f"<u{word}").reshape(count, -1)
        halves = raw.view(np.uint32).reshape(count, -1)
        flags, head, mapping, private = (
            words[:, self._at[name] // word].astype(np.uint64, copy=False)
            for name in ("flags", "head", "mapping", "private")
        )
        kinds = halves[:, self._at["type"] // 4]
        references = halves[:, self._at["count"] // 4]

        heads, larger = self._heads(head, start)
        kind = np.full(count, KIND["kernel"], dtype=np.uint8)
        kind[references == 0] = KIND["free_percpu"]
        typed = self._typed(kinds, flags, raw.reshape(count, -1))
        self._mapped(kind, mapping, flags, typed == 0)
        kind[typed != 0] = typed[typed != 0]
        kind[larger] = kind[heads[larger]]
        self._buddies(kind, private)
        kind[self._flag(flags, "PG_reserved")] = KIND["reserved"]
        kind[self._flag(flags, "PG_hwpoison")] = KIND["poisoned"]
        kind[~there] = KIND["absent"]
        self.kind[start : start + count] = kind
        self.flags[start : start + count] = flags

    def _read(self, start: int, count: int) -> tuple[Array, Array]:
        """The bytes of ``count`` elements, and which of them there are."""
        import numpy as np

        guest, size = self._guest, self._size
        raw = np.zeros(count * size, dtype=np.uint8)
        there = np.zeros(count * size // _STEP + 1, dtype=bool)
        base = self._base + start * size
        frames = [self.memmap]
        known = max(0, min(count, self._end - start))
        before = min(max(0, self._first - start), known)
        for run in guest.kernel.runs(base + before * size, (known - before) * size):
            at = run.vaddr - base
            index = guest.memory.region_index(run.paddr)
            if index < 0:
                continue
            # Where the tables map more than there is, the rest is no memory of the array.
            room = min(run.size, guest.memory.regions[index].end - run.paddr)
            window = guest.memory.view(run.paddr, room)
            data = guest.memory.read(run.paddr, room) if window is None else window
            raw[at : at + room] = np.frombuffer(data, dtype=np.uint8)
            there[at // _STEP : -(-(at + room) // _STEP)] = True
            frames.append(np.arange(run.paddr // self._page, (run.paddr + room) // self._page))
        self.memmap = np.concatenate(frames).astype(np.uint64)
        present = there[np.arange(count) * size // _STEP]
        present[known:] = present[:before] = False
        return raw, present

    def _heads(self, word: Array, start: int) -> tuple[Array, Array]:
        """The first page of the larger one that each page is in, and which are not it.

        The word of a later page is the address of the first one's ``struct page`` plus 1, or
        since 7.1 the bits of its own address that it shares with it.
        """
        import numpy as np

        count = len(word)
        own = np.arange(count, dtype=np.int64)
        larger = (word & np.uint64(1)).astype(bool)
        target = word - np.uint64(1)
        low = np.uint64(self._base + start * self._size)
        high = np.uint64(self._base + (start + count) * self._size)
        by_mask = larger & ((target < low) | (target >= high))
        address = low + own.astype(np.uint64) * np.uint64(self._size)
        target = np.where(by_mask, address & target, target)
        larger &= (target >= low) & (target < high)
        heads = np.where(larger, ((target - low) // np.uint64(self._size)).astype(np.int64), own)
        return heads, larger

    def _typed(self, kinds: Array, flags: Array, raw: Array) -> Array:
        """Kinds that pages say by their type; 0 where they have none."""
        import numpy as np

        found = np.zeros(len(kinds), dtype=np.uint8)
        names, types = self._type_names(), self._guest.types
        later = types.has("page", "memcg_data") or types.has("folio", "mapping")
        cleared = _CLEARED if later else _CLEARED_KMEMCG
        for name, kind in (
            ("buddy", "free"), ("offline", "offline"), ("table", "page_tables"),
            ("hugetlb", "hugetlb"), ("slab", "slab"), ("large_kmalloc", "slab"),
        ):  # fmt: skip
            if (number := names.get(f"PGTY_{name}")) is not None:  # 6.12, commit 4ffca5a96678
                found[kinds >> np.uint32(24) == number] = KIND[kind]
            elif (bit := names.get(f"PG_{name}")) is not None:
                base = names.get("PAGE_TYPE_BASE", 1 << 31) & 0xFFFF_FFFF
                found[(kinds & np.uint32(base | bit)) == np.uint32(base)] = KIND[kind]
            elif not names and name in cleared:
                mask = np.uint32(_BASE | cleared[name])
                found[(kinds & mask) == np.uint32(_BASE)] = KIND[kind]
        if "PG_slab" in self._bits:
            found[self._flag(flags, "PG_slab")] = KIND["slab"]
        found[self._huge(flags, raw)] = KIND["hugetlb"]
        return found

    def _huge(self, flags: Array, raw: Array) -> Array:
        """First pages of the huge-page pool, where the second page says it: until 6.10."""
        import numpy as np

        heads = np.flatnonzero(self._flag(flags, "PG_head")[:-1])
        types = self._guest.types
        if "PG_hugetlb" in self._bits:  # 6.6, commit 9c5ccf2db04b
            bit = np.uint64(1 << self._bits["PG_hugetlb"])
            second: Array = (flags[heads + 1] & bit).astype(bool)
        elif types.has("page", "compound_dtor"):
            second = raw[heads + 1, types.offsetof("page", "compound_dtor")] == _HUGETLB_DTOR
        else:
            return heads[:0]
        return heads[second]

    def _mapped(self, kind: Array, mapping: Array, flags: Array, plain: Array) -> None:
        """Pages of processes and of files: what ``mapping`` leads to."""
        import numpy as np

        low = mapping & np.uint64(_ANON | _MOVABLE)
        kind[plain & (low & np.uint64(_ANON) != 0)] = KIND["anonymous"]
        cached = np.flatnonzero(plain & (low == 0) & (mapping != 0))
        # The member is in a union: a page of a driver's own has something else there.
        owners, which = np.unique(mapping[cached], return_inverse=True)
        cached = cached[self._are_files(owners)[which]]
        swapped = self._flag(flags[cached], "PG_swapbacked")
        kind[cached] = np.where(swapped, KIND["shared"], KIND["file"]).astype(np.uint8)

    def _are_files(self, addresses: Array) -> Array:
        """Which of these are the ``address_space`` of an inode: it leads back to them."""
        import numpy as np

        guest = self._guest
        layout = guest.layout("address_space", {"host": "host"}, text=())
        hosts = layout.columns(guest.kernel, addresses, [])["host"]
        own = hosts + np.uint64(guest.types.offsetof("inode", "i_data"))
        places = np.where(hosts == 0, np.uint64(0), hosts)
        inode = guest.layout("inode", {"mapping": "i_mapping"}, text=())
        back = inode.columns(guest.kernel, places, [])["mapping"]
        # A block device's pages hang at its own inode, which leads elsewhere by i_mapping.
        result: Array = (hosts != 0) & ((back == addresses) | (own == addresses))
        return result

    def _buddies(self, kind: Array, order: Array) -> None:
        """Free blocks: the first page has the order, the others have no mark at all."""
        import numpy as np

        first = np.flatnonzero(kind == KIND["free"])
        orders = order[first]
        for each in np.unique(orders[orders <= _MAX_ORDER]).tolist():
            heads = first[orders == each]
            block = (heads[:, None] + np.arange(1 << each)).ravel()
            kind[block[block < len(kind)]] = KIND["free"]

    def _flag(self, flags: Array, name: str) -> Array:
        import numpy as np

        bit = self._bits.get(name, -1)
        if not 0 <= bit < 64:
            return np.zeros(len(flags), dtype=bool)
        result: Array = (flags & np.uint64(1 << bit)).astype(bool)
        return result

    def _type_names(self) -> dict[str, int]:
        try:
            return self._guest.types.enumerators("pagetype")
        except TypeNotFoundError:
            return {}


def _offset(guest: LinuxGuest, *paths: str) -> int:
    """Offset of the first of several members that ``struct page`` has."""
    types = guest.types
    path = next((path for path in paths if types.has("page", path)), paths[0])
    offset = types.offsetof("page", path)
    aligned = 4 if path in ("page_type", "_refcount") else types.pointer_size
    if not 0 <= offset <= types.sizeof("page") - aligned or offset % aligned:
        raise CorruptDataError(f"page.{path} at offset {offset}", 0)
    return offset
