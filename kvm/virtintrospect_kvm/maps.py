"""Where QEMU has its RAM blocks in its own address space, from /proc/PID/maps."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from virtintrospect.errors import MemoryAccessError
from virtintrospect_kvm.layout import Block

#: /proc/PID/maps of a QEMU has some hundred lines; a limit against a runaway process.
MAX_MAPS = 16 << 20

_LINE = re.compile(
    rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) (\S{4}) ([0-9a-f]{1,16})"
    rb" ([0-9a-f]{1,3}):([0-9a-f]{1,5}) (\d{1,20})(?: +(.*))?"
)
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps, see proc(5)."""

    start: int
    end: int
    permissions: str
    offset: int
    device: int
    inode: int
    path: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def shared(self) -> bool:
        """Whether writes reach the file behind it."""
        return self.permissions.endswith("s")


def parse_maps(text: bytes) -> list[Mapping]:
    """The mappings of a process, in rising order."""
    found = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        start, end, permissions, offset, major, minor, inode, path = match.groups()
        found.append(
            Mapping(
                int(start, 16),
                int(end, 16),
                permissions.decode("ascii", "replace"),
                int(offset, 16),
                os.makedev(int(major, 16), int(minor, 16)),
                int(inode),
                os.fsdecode(path or b""),
            )
        )
    return found


def find_blocks(
    blocks: Iterable[Block], mappings: list[Mapping], files: Iterable[tuple[int, int]]
) -> list[Mapping]:
    """The mapping of each block.

    Blocks that look the same (same backend, same size) are told apart by the order in which
    QEMU made them: its memfds have rising descriptor numbers, its anonymous memory falling
    addresses (the kernel's mmap_base grows down).

    :param files: device and inode of the files that QEMU holds open, in the order of their
        descriptors.
    :raises MemoryAccessError: a block is not there.
    """
    order = {key: number for number, key in enumerate(files)}
    joined = list(_join(mappings))
    guards = {mapping.start for mapping in mappings if mapping.permissions == "---p"}
    taken: set[int] = set()
    found = []
    for block in blocks:
        candidates = [
            mapping
            for mapping in dict.fromkeys([*mappings, *joined])
            if mapping.start not in taken and _fits(block, mapping)
        ]
        # QEMU leaves an inaccessible page after a block (qemu_ram_mmap in util/mmap-alloc.c),
        # which memory of other uses does not have.
        guarded = [mapping for mapping in candidates if mapping.end in guards]
        candidates = guarded or candidates
        if not candidates:
            raise MemoryAccessError(
                f"RAM block {block.name!r} of {block.size:#x} bytes is not among QEMU's mappings",
                hint="memory was plugged or unplugged just now, or this QEMU is not known: "
                "try again, then report it with /proc/PID/maps",
            )
        best = min(
            candidates,
            key=lambda m: (
                block.name not in m.path,
                order.get((m.device, m.inode), len(order)),
                -m.start,
            ),
        )
        taken.add(best.start)
        found.append(best)
    return found


def _fits(block: Block, mapping: Mapping) -> bool:
    """Whether a mapping may be the one of a block."""
    if mapping.size != block.size or not mapping.permissions.startswith("rw-"):
        return False
    path = mapping.path.removesuffix(_DELETED)
    if block.backend == "memory-backend-memfd":
        return path == "/memfd:memory-backend-memfd"
    if block.backend == "memory-backend-file":
        return path == block.path or path.startswith(block.path.rstrip("/") + "/")
    unnamed = mapping.inode == 0 and (not path or path.startswith("[anon"))
    if block.backend == "memory-backend-ram":
        return unnamed or (mapping.shared and path in ("/dev/zero", f"/memfd:{block.name}"))
    if block.backend == "memory-backend-shm":
        return mapping.shared and mapping.inode != 0
    # Hotplugged: the backend is not known, only the size.
    return unnamed or path.startswith("/memfd:memory-backend") or block.name in path


def _join(mappings: Iterable[Mapping]) -> Iterator[Mapping]:
    """Join neighbours: madvise and mbind split one mapping into several lines."""
    current: Mapping | None = None
    for mapping in mappings:
        if (
            current is not None
            and mapping.start == current.end
            and mapping.permissions == current.permissions
            and (mapping.device, mapping.inode, mapping.path)
            == (current.device, current.inode, current.path)
            and (not mapping.inode or mapping.offset == current.offset + current.size)
        ):
            current = replace(current, end=mapping.end)
            continue
        if current is not None:
            yield current
        current = mapping
    if current is not None:
        yield current
