"""Symbols of data in kernels whose kallsyms knows functions alone (no CONFIG_KALLSYMS_ALL).

From the image, once for each kernel build (:func:`with_data`): what it exports to modules; its
per-CPU variables, of which BTF has the offsets; its banner, notes and BTF, by their content.

From the running kernel, when they are asked for (:class:`Searched`): what VMCOREINFO names, and
heads of lists that something known leads to. What none of it has stays unknown, and what hangs
on it is said to be missing; symbols that a person brings have it all (docs/kernels-without-btf.md).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.symbols.btf import MAX_SIZE, Btf
from virtintrospect.symbols.exports import find_exports
from virtintrospect.symbols.table import Symbols
from virtintrospect.symbols.table_build import Entry, build_table

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

_BANNER = re.compile(rb"Linux version \d[^\0\n]{16,400}\n\0")
#: Header of BTF version 1, little-endian, 24 bytes long.
_BTF = b"\x9f\xeb\x01\0\x18\0\0\0"
_NOTE = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"
_NOTES_SIZE = 512
#: Entries of a list on the way to its head.
_MOST_ENTRIES = 1 << 16
#: Places that look like what is sought that are looked at closely.
_MOST_PLACES = 4096
#: Seconds since the epoch that a clock may show: 1973 to 2242.
_TIMES = 100_000_000, 1 << 33
#: The least that is BTF of a kernel, not of some table in it.
_LEAST_BTF = 1 << 16

Regions = list[tuple[int, memoryview]]


def with_data(image: memoryview, base: int, symbols: Symbols) -> tuple[Symbols, Regions]:
    """The functions that kallsyms knows, and the data that can be found; and where that is from.

    :param image: a private copy of the image's read-only data.
    :param base: virtual address of its first byte.
    """
    view = image.cast("B")
    exports = find_exports(image, base, symbols)
    found = dict(exports.addresses)
    regions = list(exports.regions)
    banner = _BANNER.search(view)
    if banner is not None:
        found["linux_banner"] = base + banner.start()
        regions.append((banner.start(), view[banner.start() : banner.end()]))
    at = _own_note(view)
    if at is not None:
        found["__start_notes"], found["__stop_notes"] = base + at, base + at + _NOTES_SIZE
    extent = _btf(view)
    if extent is not None:
        start, size = extent
        found["__start_BTF"], found["__stop_BTF"] = base + start, base + start + size
        for name, place in _per_cpu(Btf.parse(view[start : start + size]), found).items():
            found.setdefault(name, place)
    entries = [Entry(base, b"T", b"_text")]
    entries += [Entry(s.address, s.type.encode(), s.name.encode()) for s in symbols]
    known = {entry.name for entry in entries}
    entries += [
        Entry(address, b"D", name.encode())
        for name, address in found.items()
        if name.encode() not in known
    ]
    return build_table(entries, 64), regions


def _own_note(view: memoryview) -> int | None:
    """Where the kernel's build id is; the vDSO, an ELF file inside the image, has one, too."""
    data = bytes(view)
    at = data.find(_NOTE)
    while at >= 0 and data[at & -4096 :][:4] == b"\x7fELF":
        at = data.find(_NOTE, at + 1)
    return at if at >= 0 else None


def _btf(view: memoryview) -> tuple[int, int] | None:
    """Start and size of the kernel's BTF."""
    data = bytes(view)
    at = data.find(_BTF)
    while at >= 0:
        type_at, type_size, string_at, string_size = (
            int.from_bytes(data[at + n : at + n + 4], "little") for n in (8, 12, 16, 20)
        )
        size = 24 + string_at + string_size
        if type_at == 0 and string_at == type_size and _LEAST_BTF < size <= MAX_SIZE:
            return at, size
        at = data.find(_BTF, at + 4)
    return None


def _per_cpu(types: Btf, found: dict[str, int]) -> dict[str, int]:
    """Per-CPU variables: BTF has their offsets, those that are exported tell where these start."""
    offsets = types.section(".data..percpu")
    starts = Counter(found[name] - at for name, at in offsets.items() if name in found)
    if not starts:
        return {}
    start = starts.most_common(1)[0][0]
    return {name: start + at for name, at in offsets.items()}


class Searched:
    """Symbols of one running kernel that are looked for when somebody asks, once each."""

    def __init__(self, guest: LinuxGuest) -> None:
        self._guest = guest
        self._known: dict[str, int | None] = {}
        self._ways: dict[str, Callable[[], int | None]] = {
            "modules": self._modules,
            "super_blocks": self._super_blocks,
            "slab_caches": self._slab_caches,
            "shadow_timekeeper": self._timekeeper,
        }

    def __call__(self, name: str) -> int | None:
        """The address of a symbol, ``None`` where it is not found."""
        if name not in self._known:
            self._known[name] = None  # what follows may ask for it itself
            try:
                self._known[name] = self._find(name)
            except VirtIntrospectError as error:
                self._guest.note(f"no symbol {name}: {error.message}", 0)
        return self._known[name]

    def _find(self, name: str) -> int | None:
        if name in self._ways:
            return self._ways[name]()
        if name in ("prb", "clear_seq", "swapper_pg_dir", "vmap_area_list"):
            info = self._guest.vmcoreinfo
            if info is not None and f"SYMBOL({name})" in info.fields:
                return info.symbol(name)
        return None

    def _super_blocks(self) -> int | None:
        """From the file system that the first task has as its root."""
        guest = self._guest
        root = guest.read_global("init_task", {"sb": "fs.root.mnt.mnt_sb"})["sb"]
        return self._head(root + guest.types.offsetof("super_block", "s_list"))

    def _slab_caches(self) -> int | None:
        """From any cache of kmalloc()."""
        guest = self._guest
        table = guest.symbols.get("kmalloc_caches")
        if table is None:
            return None
        words = guest.kernel.gather([table + 8 * n for n in range(14)], 8)
        caches = [int.from_bytes(words[n : n + 8], "little") for n in range(0, len(words), 8)]
        cache = next((c for c in caches if c), None)
        return (
            None
            if cache is None
            else self._head(cache + guest.types.offsetof("kmem_cache", "list"))
        )

    def _head(self, node: int) -> int | None:
        """The head of a list: the one of its nodes that is in the image."""
        guest = self._guest
        image = guest.mapping.image
        seen: set[int] = set()
        while node not in seen and len(seen) < _MOST_ENTRIES:
            if image.start <= node < image.end:
                return node
            seen.add(node)
            node = guest.kernel.read_u64(node)
        return None

    def _modules(self) -> int | None:
        """A list head in the image's data whose entries are modules that are live."""
        import numpy as np

        guest, image, words = self._guest, self._guest.mapping.image, self._image()
        types = guest.types
        at, name_at = types.offsetof("module", "list"), types.offsetof("module", "name")
        live = types.enumerators("module_state").get("MODULE_STATE_LIVE", 0)
        # Modules lie within 2 GiB of the image; a head has two pointers to them.
        near = (words - np.uint64(image.start - (2 << 30))) < np.uint64(4 << 30)
        likely = near & ~self._inside(words) & ((words & np.uint64(7)) == 0)
        for number in np.flatnonzero(likely[:-1] & likely[1:])[:_MOST_PLACES].tolist():
            head = image.start + 8 * number
            first, last = int(words[number]), int(words[number + 1])
            try:
                if guest.kernel.read_u64(first + 8) != head or guest.kernel.read_u64(last) != head:
                    continue
                state = guest.kernel.integer(first - at, 4)
                name = guest.kernel.string(first - at + name_at, 56)
            except VirtIntrospectError:
                continue
            if state == live and re.fullmatch(rb"[A-Za-z0-9_]+", name):
                return int(head)
        return None

    def _timekeeper(self) -> int | None:
        """A ``struct timekeeper``: both of its readings are of one clock, which has a name."""
        import numpy as np

        guest, words = self._guest, self._image()
        types = guest.types
        clock, raw, seconds = (
            types.offsetof("timekeeper", name) // 8
            for name in ("tkr_mono.clock", "tkr_raw.clock", "xtime_sec")
        )
        size = types.sizeof("timekeeper") // 8
        starts = np.arange(max(0, len(words) - size))
        clocks, times = words[starts + clock], words[starts + seconds]
        likely = (clocks == words[starts + raw]) & self._inside(clocks)
        likely &= (times > np.uint64(_TIMES[0])) & (times < np.uint64(_TIMES[1]))
        layout = guest.layout("clocksource", ["name", "mask"], text=())
        for number in np.flatnonzero(likely)[:_MOST_PLACES].tolist():
            try:
                row = layout.read(guest.kernel, int(clocks[number]))
                name = guest.kernel.string(row["name"], 64)
            except VirtIntrospectError:
                continue
            if row["mask"] and re.fullmatch(rb"[a-z0-9_.-]{2,32}", name):
                return guest.mapping.image.start + 8 * int(number)
        return None

    def _image(self) -> Any:
        """The words of the image as they are now."""
        import numpy as np

        image = self._guest.mapping.image
        return np.frombuffer(
            self._guest.memory.read(image.paddr, (image.end - image.start) & -8), "<u8"
        )

    def _inside(self, words: Any) -> Any:
        """Which words are addresses in the image."""
        import numpy as np

        image = self._guest.mapping.image
        return (words - np.uint64(image.start)) < np.uint64(image.end - image.start)
