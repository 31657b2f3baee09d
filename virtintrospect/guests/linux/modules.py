"""Loaded kernel modules (kernel/module/, include/linux/module.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.errors import NoSuchTargetError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.model import Module

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.types import Types

#: More modules than any guest loads.
LIMIT = 16384
#: Larger BTF of one module is not believed; distributions' largest have 2 MiB.
_LARGEST_BTF = 16 << 20
#: More users than a module can have: every other module.
_MAX_USERS = 4096
#: MODULE_REF_BASE: what the kernel itself holds of every live module.
_REF_BASE = 1
#: Bits of ``taints`` that a module can carry (taint_flags[] of kernel/panic.c).
_TAINTS = {0: "P", 1: "F", 10: "C", 12: "O", 13: "E", 15: "K", 16: "X", 18: "N", 19: "J"}
_STATUS = {0: "Live", 1: "Loading", 2: "Unloading"}
#: MODULE_STATE_UNFORMED: being set up, not yet shown by the kernel either.
_UNFORMED = 3


def modules(guest: LinuxGuest) -> list[Module]:
    """The rows of ``modules``, in the order of /proc/modules."""
    offset = guest.types.offsetof("module", "list")
    budget = Budget()
    head = guest.symbols.address("modules")
    nodes, problem = walk_list(guest.kernel, head, limit=LIMIT, budget=budget)
    guest.note_all([problem])
    addresses = [node - offset for node in nodes]
    rows = _rows(guest, addresses)
    found = [
        _module(guest, address, row, budget)
        for address, row in zip(addresses, rows, strict=True)
        if _plausible(guest, address, row)
    ]
    guest.note_all([budget.problem])
    return found


def _rows(guest: LinuxGuest, addresses: list[int]) -> list[dict[str, Any]]:
    layout = guest.layout("module", _members(guest), text=("name",))
    faults: list[int] = []
    columns = layout.lists(guest.kernel, addresses, faults)
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _members(guest: LinuxGuest) -> dict[str, str]:
    members = {"name": "name", "state": "state", "refcount": "refcnt.counter", "taints": "taints"}
    return members | _memory_members(guest)


def _memory_members(guest: LinuxGuest) -> dict[str, str]:
    """Where a module's memory is described.

    Since 6.4 one entry a kind (commit ac3b43283923); two ``module_layout`` since 4.5 (commit
    7523e4dc5057), before that members of the module's own.
    """
    if guest.types.has("module", "mem"):
        kinds = guest.types.enumerators("mod_mem_type")
        count = kinds.get("MOD_MEM_NUM_TYPES", 0)
        sizes = {f"size{kind}": f"mem[{kind}].size" for kind in range(min(count, 16))}
        return sizes | {"base": f"mem[{kinds.get('MOD_TEXT', 0)}].base"}
    return {
        "size0": "core_layout.size|core_size",
        "size1": "init_layout.size|init_size",
        "base": "core_layout.base|module_core",
    }


def _plausible(guest: LinuxGuest, address: int, row: dict[str, Any]) -> bool:
    if row["state"] is None:
        guest.note("unreadable module", address)
        return False
    if row["state"] != _UNFORMED and row["state"] not in _STATUS:
        guest.note(f"module with the impossible state {row['state']}", address)
        return False
    return bool(row["state"] != _UNFORMED)


def _module(guest: LinuxGuest, address: int, row: dict[str, Any], budget: Budget) -> Module:
    return Module(
        name=row["name"].split(b"\0", 1)[0],
        size=sum(size for key, size in row.items() if key.startswith("size")),
        used_by=_users(guest, address, budget),
        refcount=row["refcount"] - _REF_BASE,
        status=_STATUS[row["state"]],
        address=row["base"],
        taints="".join(letter for bit, letter in _TAINTS.items() if row["taints"] >> bit & 1),
    )


def _users(guest: LinuxGuest, address: int, budget: Budget) -> tuple[bytes, ...]:
    """Names of the modules that need this one (``source_list`` of ``struct module_use``)."""
    if not guest.types.has("module", "source_list"):
        return ()  # built without CONFIG_MODULE_UNLOAD
    head = address + guest.types.offsetof("module", "source_list")
    nodes, problem = walk_list(guest.kernel, head, limit=_MAX_USERS, budget=budget)
    guest.note_all([problem])
    offset = guest.types.offsetof("module_use", "source_list")
    layout = guest.layout("module_use", {"name": "source.name"}, text=("name",))
    names = layout.lists(guest.kernel, [node - offset for node in nodes], [])["name"]
    return tuple(name.split(b"\0", 1)[0] for name in names if name is not None)


def module_types(guest: LinuxGuest, name: str) -> Types:
    """Split BTF of a module, out of the kernel's list ``btf_modules`` (kernel/bpf/btf.c, 5.11)."""
    from virtintrospect.symbols.btf import Btf

    none = NoSuchTargetError(
        f"the guest has no types of a module {name!r}",
        hint="`modules` shows those that are loaded; modules carry types since Linux 5.11",
    )
    if "btf_module" not in guest.types:
        raise none
    layout = guest.layout(
        "btf_module",
        {"name": "module.name", "data": "btf.data", "size": "btf.data_size"},
        text=("name",),
    )
    offset = guest.types.offsetof("btf_module", "list")
    nodes, problem = walk_list(guest.kernel, guest.symbols.address("btf_modules"), limit=LIMIT)
    guest.note_all([problem])
    columns = layout.lists(guest.kernel, [node - offset for node in nodes], [])
    for found, data, size in zip(*columns.values(), strict=True):
        if found is None or found.split(b"\0", 1)[0] != name.encode():
            continue
        if not isinstance(guest.types, Btf) or not data or not 0 < size <= _LARGEST_BTF:
            break
        return Btf.parse(guest.kernel.read(data, size), base=guest.types)
    raise none
