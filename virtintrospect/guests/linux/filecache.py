"""How much of the page cache is in use: a sample of ``struct page``.

Which lists pages are on no longer says it. Where the kernel keeps its lists by generation
(MGLRU, ``struct lru_gen_folio``), a page that is read again and again through file descriptors
stays where it was put first, and counts as inactive until the kernel runs short; what its flags
have counted is how often it was used (folio_mark_accessed() and lru_gen_inc_refs() of
mm/swap.c). Without generations the second use makes a page active.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.arch.paging import NOT_MAPPED
from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux.counters import Counters
from virtintrospect.guests.linux.filetouch import touched
from virtintrospect.guests.linux.pagecache import page_array
from virtintrospect.model import CacheUse

if TYPE_CHECKING:
    import numpy.typing as npt

    from virtintrospect.guests.linux.guest import LinuxGuest

    Array = npt.NDArray[Any]

#: Pages looked at: the share of a guest's memory is then known to 0.8 % of it.
_SAMPLE = 1 << 12
#: Bits of the generation's number, plus 1: order_base_2(MAX_NR_GENS + 1), and the highest number.
_GENERATION_BITS, _GENERATIONS = 3, 4
#: LRU_REFS_WIDTH, below them, where there is room (include/linux/page-flags-layout.h).
_REFERENCE_BITS = 2
#: Pages on lists that make sure of where those bits are.
_ENOUGH = 16
#: S_IFMT and S_IFREG (include/uapi/linux/stat.h).
_FORMAT, _REGULAR = 0o170000, 0o100000
#: ``s_magic`` of file systems whose regular inodes are files that somebody reads by their names,
#: none of them the file system's own: ext4, XFS, Btrfs, F2FS, FAT, exFAT, ISO 9660, squashfs,
#: EROFS, NFS, CIFS, SMB 2, 9P, FUSE, Ceph (include/uapi/linux/magic.h and their own headers).
_PLAIN = frozenset({
    0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x4D44, 0x2011BAB0, 0x9660, 0x73717368,
    0xE0F5E1E2, 0x6969, 0xFF534D42, 0xFE534D42, 0x01021997, 0x65735546, 0x00C36400,
})  # fmt: skip
#: Pages with one of these hold data of files or programs.
_OF_USERS = ("PG_referenced", "PG_workingset", "PG_uptodate", "PG_swapbacked")


def cache_use(guest: LinuxGuest) -> CacheUse:
    """The record of how much of the page cache is in use."""
    import numpy as np

    counters = Counters(guest)
    total = (counters["NR_ACTIVE_FILE"] + counters["NR_INACTIVE_FILE"]) * guest.page_size
    flags, mapped, owners = _sample(guest)
    listed = _flag(guest, flags, "PG_lru")
    cached = listed & ~_flag(guest, flags, "PG_swapbacked") & ~_flag(guest, flags, "PG_unevictable")
    again = mapped | _flag(guest, flags, "PG_active") | _flag(guest, flags, "PG_workingset")
    again |= _references(guest, flags, listed)
    found = int(np.count_nonzero(cached))
    used = int(np.count_nonzero(cached & again))
    files = None if owners is None else _of_files(guest, owners[cached & again])
    counted = touched(guest, counters)
    low = sum(zone.low for zone in counters.zones) * guest.page_size
    return CacheUse(
        total=total,
        used_again=total * used // found if found else 0,
        kept=min(total // 2, low),
        on_cpus=counters.on_cpus() * guest.page_size,
        sampled=found,
        files=None if files is None else total * files // found if found else 0,
        mapped=(counters.get("NR_FILE_MAPPED") or 0) * guest.page_size,
        touched=counted.size,
        uncounted=counted.uncounted,
    )


def _of_files(guest: LinuxGuest, owners: Array) -> int:
    """How many pages are of regular files: what else is in the cache the kernel reads itself.

    :param owners: ``mapping`` of each.
    """
    import numpy as np

    unique, counts = np.unique(owners, return_counts=True)
    layout = guest.layout(
        "address_space", {"mode": "host.i_mode", "magic": "host.i_sb.s_magic"}, text=()
    )
    columns = layout.lists(guest.kernel, unique.tolist(), [])
    return sum(
        int(count)
        for count, mode, magic in zip(counts, *columns.values(), strict=True)
        if mode is not None and mode & _FORMAT == _REGULAR and magic in _PLAIN
    )


def _sample(guest: LinuxGuest) -> tuple[Array, Array, Array | None]:
    """Flags of random pages, those of the larger page that each is in; whether any is mapped.

    Besides, the ``address_space`` that each belongs to, where ``struct page`` says so.
    """
    import numpy as np

    base, size = page_array(guest)
    page, regions = guest.page_size, guest.memory.regions
    starts = np.array([region.start // page for region in regions], dtype=np.int64)
    counts = np.array([region.size // page for region in regions], dtype=np.int64)
    ends = np.cumsum(counts)
    chosen = np.random.default_rng().integers(0, ends[-1], _SAMPLE)
    region = np.searchsorted(ends, chosen, side="right")
    frames = starts[region] + chosen - (ends - counts)[region]
    pages = _Pages(guest, np.uint64(base) + frames.astype(np.uint64) * np.uint64(size), size)
    head = pages.member("compound_info|compound_head")  # the first since 7.1
    later = (head & np.uint64(1)).astype(bool)
    # The address of the first page plus 1, or the bits of its own that a page shares with it.
    target = head[later] - np.uint64(1)
    own = pages.place[later]
    end = base + guest.memory.end // page * size
    within = (target >= np.uint64(base)) & (target < np.uint64(end))
    heads = _Pages(guest, np.where(within, target, own & target), size)
    flags, counts = pages.member("flags.f|flags"), pages.member("_mapcount.counter", "i")
    flags[later] = heads.member("flags.f|flags")
    counts[later] = heads.member("_mapcount.counter", "i")
    owners = None
    if guest.types.has("page", "mapping"):  # no member of it since memory descriptors
        owners = pages.member("mapping")
        owners[later] = heads.member("mapping")
    return flags, counts >= 0, owners


class _Pages:
    """Some ``struct page``, read together; zeros where there is no memory.

    :param place: their virtual addresses.
    """

    def __init__(self, guest: LinuxGuest, place: Array, size: int) -> None:
        import numpy as np

        self._types = guest.types
        self.place = place
        at = guest.kernel.translate_many(place)
        there = at != np.uint64(NOT_MAPPED)
        self._raw = np.zeros((len(place), size), dtype=np.uint8)
        data = guest.memory.gather(at[there].tolist(), size, [])
        self._raw[there] = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)

    def member(self, paths: str, kind: str = "u") -> Array:
        """A member of each, the first of several that there is.

        :param kind: ``u`` for a number as wide as a pointer, ``i`` for an ``int``.
        """
        import numpy as np

        types, names = self._types, paths.split("|")
        offset = types.offsetof("page", next((n for n in names if types.has("page", n)), names[-1]))
        width = 4 if kind == "i" else types.pointer_size
        if not 0 <= offset <= self._raw.shape[1] - width:
            raise CorruptDataError(f"page.{names[-1]} at offset {offset}", 0)
        cells = np.ascontiguousarray(self._raw[:, offset : offset + width])
        found = cells.view(f"<{kind}{width}")[:, 0]
        return found.astype(np.int32 if kind == "i" else np.uint64)


def _references(guest: LinuxGuest, flags: Array, listed: Array) -> Array:
    """Pages that were used more than once, by the count that kernels with generations keep.

    No table says where in the flags it is: the generation lies below all that tells a page's
    place (node, zone, last CPU), and the count below the generation. Every page on a list that
    may be evicted has a generation; where that is not so there are none, and no counts.
    """
    import numpy as np

    none = np.zeros(len(flags), dtype=bool)
    evictable = listed & ~_flag(guest, flags, "PG_unevictable")
    known = guest.types.enumerators("pageflags").get("__NR_PAGEFLAGS", 64)
    if not 0 <= known < 64:
        return none
    # What waits to be put on a list (folio_batch) has no generation yet, but is counted already.
    kernel = ~listed
    for name in _OF_USERS:
        kernel &= ~_flag(guest, flags, name)
    others = np.bitwise_or.reduce(flags[kernel], initial=np.uint64(0)) >> np.uint64(known)
    if not int(others) or np.count_nonzero(evictable) < _ENOUGH:
        return none
    lowest = known + (int(others) & -int(others)).bit_length() - 1
    first = lowest - _GENERATION_BITS
    if first - _REFERENCE_BITS < known:
        return none
    generations = flags[evictable] >> np.uint64(first) & np.uint64((1 << _GENERATION_BITS) - 1)
    if not ((generations > 0) & (generations <= _GENERATIONS)).all():
        return none
    mask = ((1 << _REFERENCE_BITS) - 1) << first - _REFERENCE_BITS
    result: Array = (flags & np.uint64(mask)).astype(bool)
    return result


def _flag(guest: LinuxGuest, flags: Array, name: str) -> Array:
    import numpy as np

    bit = guest.types.enumerators("pageflags").get(name, -1)
    if not 0 <= bit < 64:
        return np.zeros(len(flags), dtype=bool)
    result: Array = (flags & np.uint64(1 << bit)).astype(bool)
    return result
