"""Memory mappings of a process, as /proc/PID/maps shows them (fs/proc/task_mmu.c).

They hang in a red-black tree (``mm_struct.mm_rb``) until Linux 6.0, in a maple tree
(``mm_struct.mm_mt``) since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.device import device_name
from virtintrospect.guests.linux.maple import walk_maple
from virtintrospect.guests.linux.paths import FilePath, PathReader
from virtintrospect.guests.linux.process import find_user_process
from virtintrospect.guests.linux.rbtree import walk_rbtree
from virtintrospect.model import MemoryArea

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.types import Types

Row = dict[str, Any]

#: Permissions (include/linux/mm.h): VM_READ, VM_WRITE, VM_EXEC, VM_MAYSHARE.
_PERMISSIONS = ((0x1, "r"), (0x2, "w"), (0x4, "x"))
_VM_MAYSHARE = 0x80
#: FMODE_NOACCOUNT (include/linux/fs.h). FMODE_BACKING says it better, but has moved about.
_FMODE_NOACCOUNT = 1 << 29
#: MM_CONTEXT_HAS_VSYSCALL (arch/x86/include/asm/mmu.h), as bit of ``context.flags``.
_HAS_VSYSCALL = 0x2
#: NONE of arch/x86/entry/vsyscall/vsyscall_64.c.
_NO_VSYSCALL = 2
#: ANON_VMA_NAME_MAX_LEN (include/linux/mm_inline.h); no special mapping has a longer name.
_MAX_NAME = 80
#: How often the tree is read again when it changed meanwhile.
_ATTEMPTS = 3

_PROCESS = {
    "count": "mm.map_count",
    "brk": "mm.brk",
    "start_brk": "mm.start_brk",
    "stack": "mm.start_stack",
    "context": "mm.context.flags?",
    "compat": "mm.context.ia32_compat?",
    "tree": "mm.mm_mt.ma_root|mm.mm_rb.rb_node",
}
_MEMBERS = {
    "mm": "vm_mm",
    "start": "vm_start",
    "end": "vm_end",
    "flags": "vm_flags",
    "offset": "vm_pgoff",
    "ops": "vm_ops",
    "private": "vm_private_data",
    "anon_name": "anon_name?",
    "file": "vm_file",
    "mode": "vm_file.f_mode",
    "mount": "vm_file.f_path.mnt",
    "dentry": "vm_file.f_path.dentry",
    "inode": "vm_file.f_inode.i_ino",
    "device": "vm_file.f_inode.i_sb.s_dev",
}
#: What must not have changed for a mapping to be believed.
_IDENTITY = ("mm", "start", "end", "flags", "file")


def maps(guest: LinuxGuest, pid: int) -> list[MemoryArea]:
    """The rows of ``maps``, lowest address first.

    :raises NoSuchTargetError: there is no such process, or it has no memory of its own.
    """
    budget = Budget()
    for _ in range(_ATTEMPTS if guest.live else 1):
        process, rows = _complete(guest, pid, budget)
        records = _Table(guest, process, rows, pid, budget).records()
        same = _same(guest, process, rows)
        if all(same):
            break
    else:
        guest.note(f"{same.count(False)} mappings of process {pid} changed while they were read", 0)
    guest.note_all([budget.problem])
    return [record for record, believed in zip(records, same, strict=True) if believed]


def _complete(guest: LinuxGuest, pid: int, budget: Budget) -> tuple[Row, list[Row]]:
    """The process, and as many mappings as it says that it has."""
    for _ in range(_ATTEMPTS):
        process = find_user_process(guest, pid, _PROCESS)
        rows, problems = _read(guest, process, budget)
        if not problems and len(rows) == process["count"]:
            break
        guest.memory.expire()
    else:
        if not problems:
            guest.note(f"process {pid} has {process['count']} mappings, seen {len(rows)}", 0)
    for what, address in problems:
        guest.note(what, address)
    return process, rows + _gate(guest, process)


def _same(guest: LinuxGuest, process: Row, rows: list[Row]) -> list[bool]:
    """Which mappings a second look finds unchanged; none where the process has other memory."""
    if not guest.live:
        return [True] * len(rows)
    guest.memory.expire()
    layout = guest.layout("task_struct", {"pid": "tgid", "mm": "mm"}, ())
    owner = layout.lists(guest.kernel, [process["address"]], [])
    if owner["mm"] != [process["mm"]]:
        return [False] * len(rows)
    members = {name: _MEMBERS[name] for name in _IDENTITY}
    layout = guest.layout("vm_area_struct", members, ())
    again = layout.lists(guest.kernel, [row["area"] for row in rows], [])
    now = zip(*again.values(), strict=True)
    return [
        tuple(row[name] for name in _IDENTITY) == found
        for row, found in zip(rows, now, strict=True)
    ]


def _read(
    guest: LinuxGuest, process: Row, budget: Budget
) -> tuple[list[Row], list[tuple[str, int]]]:
    """Mappings that belong to the process, and what is wrong with the others."""
    problems: list[tuple[str, int]] = []
    tree = process["tree"] or 0
    if guest.types.has("mm_struct", "mm_mt"):
        areas, problem = walk_maple(guest, tree, budget)
    else:
        areas, problem = walk_rbtree(guest, tree, budget)
        offset = guest.types.offsetof("vm_area_struct", "vm_rb")
        areas = [node - offset for node in areas if node >= offset]
    if problem:
        problems.append((problem.what, problem.address))
    columns = guest.layout("vm_area_struct", _MEMBERS, ()).lists(guest.kernel, areas, [])
    rows = []
    for area, values in zip(areas, zip(*columns.values(), strict=True), strict=True):
        row = dict(zip(columns, values, strict=True))
        if row["mm"] is None:
            problems.append(("unreadable mapping", area))
        elif row["mm"] != process["mm"] or row["start"] >= row["end"]:
            problems.append(("mapping that is not of this process", area))
        else:
            rows.append(row | {"area": area})
    return rows, problems


def _gate(guest: LinuxGuest, process: Row) -> list[Row]:
    """The page that is in no tree (``get_gate_vma()``).

    x86-64 has the vsyscall page (vsyscall_64.c), ARM that of the vectors (kernel/process.c).
    """
    if "gate_vma" not in guest.symbols:
        return []
    try:
        if _has_vsyscall(guest) and not _shows_vsyscall(guest, process):
            return []
        area = guest.symbols.address("gate_vma")
        return [guest.read_global("gate_vma", _MEMBERS) | {"area": area}]
    except FaultError as error:
        guest.note("unreadable mapping behind all others", error.address)
        return []


def _has_vsyscall(guest: LinuxGuest) -> bool:
    return "vsyscall_mode" in guest.symbols


def _shows_vsyscall(guest: LinuxGuest, process: Row) -> bool:
    context = process["context"]
    there = not process["compat"] if context is None else context & _HAS_VSYSCALL
    mode = guest.kernel.read(guest.symbols.address("vsyscall_mode"), 4)
    return bool(there) and int.from_bytes(mode, "little") != _NO_VSYSCALL


class _Table:
    """All rows of one ``maps``, and what they share."""

    def __init__(
        self, guest: LinuxGuest, process: Row, rows: list[Row], pid: int, budget: Budget
    ) -> None:
        self._guest = guest
        self._process = process
        self._pid = pid
        self._rows = rows
        self._budget = budget
        _user_files(guest, rows)
        paths = {_path(row) for row in rows}
        self._paths = PathReader(guest, budget).files(path for path in paths if path)
        self._special = self._special_names()
        self._given = self._given_names()

    def records(self) -> list[MemoryArea]:
        return [self._record(row) for row in self._rows]

    def _record(self, row: Row) -> MemoryArea:
        flags = row["flags"]
        letters = "".join(letter if flags & bit else "-" for bit, letter in _PERMISSIONS)
        name = self._name(row)
        return MemoryArea(
            pid=self._pid,
            start=row["start"],
            end=row["end"],
            permissions=letters + ("s" if flags & _VM_MAYSHARE else "p"),
            offset=(row["offset"] * self._guest.page_size) % (1 << 64) if row["file"] else 0,
            device=device_name(row["device"] if row["file"] else 0),
            inode=row["inode"] if row["file"] else 0,
            path=name if name is None or self._budget.keep(len(name)) else None,
        )

    def _name(self, row: Row) -> bytes | None:
        """As ``get_vma_name()`` finds it; ``None`` for an anonymous mapping."""
        given = self._given.get(row["anon_name"])
        if row["file"]:
            if given is not None:
                return b"[anon_shmem:" + given + b"]"
            path = _path(row)
            return self._paths.get(path) if path else None
        special = self._special.get(row["private"]) if self._is_special(row) else None
        if special is not None:
            return special
        process = self._process
        if row["start"] < (process["brk"] or 0) and row["end"] > (process["start_brk"] or 0):
            return b"[heap]"
        if row["start"] <= (process["stack"] or 0) <= row["end"]:
            return b"[stack]"
        if row["mm"] == 0:
            return b"[vsyscall]" if _has_vsyscall(self._guest) else b"[vectors]"
        return None if given is None else b"[anon:" + given + b"]"

    def _is_special(self, row: Row) -> bool:
        symbols = self._guest.symbols
        if "special_mapping_vmops" not in symbols or not row["private"]:
            return False
        return bool(row["ops"] == symbols.address("special_mapping_vmops"))

    def _special_names(self) -> dict[int, bytes | None]:
        """[vdso], [vvar], …: ``vm_special_mapping.name``."""
        places = list({row["private"] for row in self._rows if self._is_special(row)})
        layout = self._guest.layout("vm_special_mapping", {"name": "name"}, text=())
        pointers = layout.lists(self._guest.kernel, places, [])["name"]
        names = self._guest.kernel.strings([pointer or 0 for pointer in pointers], _MAX_NAME)
        return dict(zip(places, names, strict=True))

    def _given_names(self) -> dict[int | None, bytes]:
        """What programs call their memory: prctl(PR_SET_VMA_ANON_NAME), CONFIG_ANON_VMA_NAME."""
        types = self._guest.types
        if not keeps_names(self._guest):
            return {}
        if _overlap(types):  # until 6.2, with a file mapping's node of i_mmap
            for row in self._rows:
                row["anon_name"] = 0 if row["file"] else row["anon_name"]
        places = list({row["anon_name"] for row in self._rows if row["anon_name"]})
        offset = types.offsetof("anon_vma_name", "name")
        names = self._guest.kernel.strings([place + offset for place in places], _MAX_NAME)
        return {place: name for place, name in zip(places, names, strict=True) if name is not None}


def keeps_names(guest: LinuxGuest) -> bool:
    """Whether the kernel has CONFIG_ANON_VMA_NAME: 6.1 has the member without it, too."""
    return "anon_vma_name_free" in guest.symbols and guest.types.has("vm_area_struct", "anon_name")


def _overlap(types: Types) -> bool:
    shared = types.resolve("vm_area_struct", "shared")[-1]
    name = types.offsetof("vm_area_struct", "anon_name")
    return shared.offset <= name < shared.offset + shared.size


def _path(row: Row) -> FilePath | None:
    return FilePath(row["mount"], row["dentry"]) if row["mount"] and row["dentry"] else None


def _user_files(guest: LinuxGuest, rows: list[Row]) -> None:
    """Show the file of an overlay, not the one below (``file_user_path()``, since 6.6).

    The one below is in a ``backing_file`` along with the path of the one above.
    """
    backed = [row for row in rows if row["mode"] and row["mode"] & _FMODE_NOACCOUNT]
    if not backed or not guest.types.has("backing_file", "user_path"):
        return
    members = {
        "mount": "user_path.mnt",
        "dentry": "user_path.dentry",
        "inode": "user_path.dentry.d_inode.i_ino",
        "device": "user_path.dentry.d_inode.i_sb.s_dev",
        "system": "user_path.mnt.mnt_sb",
        "same": "user_path.dentry.d_sb",
    }
    layout = guest.layout("backing_file", members, text=())
    shift = guest.types.offsetof("backing_file", "file")
    columns = layout.lists(guest.kernel, [row["file"] - shift for row in backed], [])
    for row, values in zip(backed, zip(*columns.values(), strict=True), strict=True):
        found = dict(zip(columns, values, strict=True))
        # Other files without an account have no path there, but what is next in memory.
        if found["system"] and found["system"] == found["same"]:
            row.update(found)
