"""eBPF programs and maps (kernel/bpf/syscall.c): the tables by which their ids are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.bpffs import pinned
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.sockfiles import opened
from virtintrospect.guests.linux.system import boot_time
from virtintrospect.guests.linux.xarray import walk_xarray
from virtintrospect.model import BpfObject

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: MAX_USED_MAPS and BPF_MAX_SUBPROGS (include/linux/bpf.h, bpf_verifier.h), and as much again.
_MAX_MAPS, _MAX_PARTS = 128, 512
#: sizeof(struct bpf_insn).
_INSTRUCTION = 8
_NANOSECONDS = 1_000_000_000
#: Longest name of a function that a program hangs on (KSYM_NAME_LEN), of an enumerator.
_NAME, _WORD = 512, 64

_PROGRAM = {
    "type": "type",
    "attach": "expected_attach_type",
    "length": "len",
    "jited": "jited_len",
    "tag": "tag",
    "aux": "aux",
    "id": "aux.id",
    "name": "aux.name",
    "loaded": "aux.load_time",
    "uid": "aux.user.uid.val",
    "function": "aux.attach_func_name?",
    "maps": "aux.used_maps",
    "map_count": "aux.used_map_cnt",
    "parts": "aux.func",
    "part_count": "aux.func_cnt",
}
_MAP = {
    "type": "map_type",
    "id": "id",
    "name": "name",
    "key_size": "key_size",
    "value_size": "value_size",
    "max_entries": "max_entries",
    "flags": "map_flags",
    "frozen": "frozen?",
    "uid": "memory.user.uid.val?",  # until 5.11, commit 80ee81e0403c
}


def bpf(guest: LinuxGuest) -> list[BpfObject]:
    """The rows of ``bpf``: programs, then maps, by id.

    :raises NotFoundError: the kernel was built without the system call.
    """
    if "prog_idr" not in guest.symbols:
        raise guest.without("eBPF")
    budget = Budget()
    programs, maps = _programs(guest, budget), _maps(guest, budget)
    if guest.live:  # a second look: what meanwhile is another object's is not reported
        programs = _still(guest, "prog_idr", programs, budget)
        maps = _still(guest, "map_idr", maps, budget)
    owners = opened(guest, budget, None, ("bpf_prog_fops", "bpf_map_fops"))
    paths = pinned(guest, budget)
    for row in (*programs, *maps):
        row["pids"] = tuple(sorted({holder.pid for holder in owners.get(row["address"], ())}))
        row["pinned"] = paths.get(row["address"])
    ids = {row["address"]: row["id"] for row in maps}
    _used_maps(guest, programs, ids, budget)
    _code_sizes(guest, programs, budget)
    booted = boot_time(guest)
    guest.note_all([budget.problem])
    hooks = _words(guest, "bpf_attach_type", "BPF_")
    kinds = _words(guest, "bpf_prog_type", "BPF_PROG_TYPE_")
    found = [_program(row, kinds, hooks, booted) for row in programs]
    kinds = _words(guest, "bpf_map_type", "BPF_MAP_TYPE_")
    return found + [_map(row, kinds) for row in maps]


def _ids(guest: LinuxGuest, symbol: str, budget: Budget) -> dict[int, int]:
    """Address of each object: its id."""
    members = {"head": "idr_rt.xa_head", "base": "idr_base?"}
    root = guest.read_global(symbol, members)
    found = walk_xarray(guest, root["head"] or 0, budget)
    return {entry: index + (root["base"] or 0) for index, entry in found}


def _rows(
    guest: LinuxGuest, symbol: str, name: str, members: dict[str, str], text: tuple[str, ...],
    budget: Budget,
) -> list[Row]:  # fmt: skip
    ids = _ids(guest, symbol, budget)
    columns = guest.layout(name, members, text=text).lists(guest.kernel, list(ids), [])
    rows = []
    for (address, number), values in zip(
        ids.items(), zip(*columns.values(), strict=True), strict=True
    ):
        row: Row = dict(zip(columns, values, strict=True))
        if row["type"] is None or row["id"] != number:
            guest.note(f"unreadable {name}", address)
            continue
        row["name"] = (row["name"] or b"").split(b"\0", 1)[0] or None
        rows.append(row | {"address": address})
    return sorted(rows, key=lambda row: row["id"])


def _programs(guest: LinuxGuest, budget: Budget) -> list[Row]:
    return _rows(guest, "prog_idr", "bpf_prog", _PROGRAM, ("name", "tag"), budget)


def _maps(guest: LinuxGuest, budget: Budget) -> list[Row]:
    return _rows(guest, "map_idr", "bpf_map", _MAP, ("name",), budget)


def _still(guest: LinuxGuest, symbol: str, rows: list[Row], budget: Budget) -> list[Row]:
    now = _ids(guest, symbol, budget)
    return [row for row in rows if now.get(row["address"]) == row["id"]]


def _pointers(
    guest: LinuxGuest, array: int | None, count: int | None, most: int, budget: Budget
) -> list[int]:
    """An array of pointers; none where it claims too much."""
    if not array or not count:
        return []
    if not 0 < count <= most:
        guest.note(f"eBPF program with {count} parts", array)
        return []
    if budget.late() or budget.follow(count) < count:
        return []
    try:
        return list(guest.kernel.pointers(array, count))
    except FaultError as error:
        guest.note("unreadable eBPF program", error.address)
        return []


def _used_maps(guest: LinuxGuest, programs: list[Row], ids: dict[int, int], budget: Budget) -> None:
    for row in programs:
        used = _pointers(guest, row["maps"], row["map_count"], _MAX_MAPS, budget)
        row["map_ids"] = tuple(ids[address] for address in used if address in ids)


def _code_sizes(guest: LinuxGuest, programs: list[Row], budget: Budget) -> None:
    """Bytes of machine code; a program with functions has it in them."""
    layout = guest.layout("bpf_prog", {"jited": "jited_len"}, text=())
    for row in programs:
        if parts := _pointers(guest, row["parts"], row["part_count"], _MAX_PARTS, budget):
            sizes = layout.lists(guest.kernel, parts, [])["jited"]
            row["jited"] = None if None in sizes else sum(sizes)
    functions = [row["function"] or 0 for row in programs]
    names = guest.kernel.strings(functions, _NAME)
    for row, pointer, name in zip(programs, functions, names, strict=True):
        row["function"] = name if pointer else None


def _words(guest: LinuxGuest, enum: str, prefix: str) -> dict[int, str]:
    """The kernel's own names of a kind of things, in lower case."""
    found: dict[int, str] = {}
    for name, value in guest.types.enumerators(enum).items():
        if name.startswith(prefix) and not name.endswith("_DEPRECATED"):
            found.setdefault(value, name.removeprefix(prefix).lower()[:_WORD])
    return found


def _program(
    row: Row, kinds: dict[int, str], hooks: dict[int, str], booted: int | None
) -> BpfObject:
    kind = kinds.get(row["type"], str(row["type"]))
    # Attach type 0 is one that only cgroup_skb can have; to all others it means nothing.
    attach = row["attach"] if row["attach"] or kind == "cgroup_skb" else None
    loaded = None
    if booted is not None and row["loaded"] is not None:
        loaded = (booted + row["loaded"]) // _NANOSECONDS
    return BpfObject(
        kind="prog",
        id=row["id"],
        name=row["name"],
        type=kind,
        tag=row["tag"].hex(),
        attach_type=None if attach is None else hooks.get(attach, str(attach)),
        attach_function=row["function"],
        loaded_at=loaded,
        uid=row["uid"],
        size=row["length"] * _INSTRUCTION,
        jited_size=row["jited"],
        maps=row["map_ids"],
        key_size=None,
        value_size=None,
        max_entries=None,
        map_flags=None,
        frozen=None,
        pinned=row["pinned"],
        pids=row["pids"],
        address=row["address"],
    )


def _map(row: Row, kinds: dict[int, str]) -> BpfObject:
    return BpfObject(
        kind="map",
        id=row["id"],
        name=row["name"],
        type=kinds.get(row["type"], str(row["type"])),
        tag=None,
        attach_type=None,
        attach_function=None,
        loaded_at=None,
        uid=row["uid"],
        size=None,
        jited_size=None,
        maps=None,
        key_size=row["key_size"],
        value_size=row["value_size"],
        max_entries=row["max_entries"],
        map_flags=row["flags"],
        frozen=None if row["frozen"] is None else bool(row["frozen"]),
        pinned=row["pinned"],
        pids=row["pids"],
        address=row["address"],
    )
