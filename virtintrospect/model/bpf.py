"""eBPF programs and maps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BpfObject:
    """One row of ``bpf``: a program or a map."""

    #: ``prog`` or ``map``.
    kind: str
    id: int
    name: bytes | None
    #: ``socket_filter``, ``xdp``, …; ``hash``, ``ringbuf``, …: the kernel's own words.
    type: str
    #: Of a program: a hash of its instructions, as bpftool shows it.
    tag: str | None
    #: What a program said that it wants to be attached to.
    attach_type: str | None
    #: Kernel function on which a program hangs.
    attach_function: bytes | None
    #: Seconds since the epoch.
    loaded_at: int | None
    uid: int | None
    #: Bytes of a program's instructions, and of the machine code made of them (0: interpreted).
    size: int | None
    jited_size: int | None
    #: Ids of the maps that a program uses.
    maps: tuple[int, ...] | None
    #: Of a map: bytes of a key and of a value, and how many it can have.
    key_size: int | None
    value_size: int | None
    max_entries: int | None
    #: BPF_F_* of a map.
    map_flags: int | None
    #: User space may not write the map any more.
    frozen: bool | None
    #: Path of a file in a bpf file system that keeps it.
    pinned: bytes | None
    #: Processes that have it open.
    pids: tuple[int, ...]
    #: Virtual address of the ``struct bpf_prog`` or ``bpf_map``.
    address: int
