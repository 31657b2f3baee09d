"""Guests that a Linux guest runs itself, by its KVM (virt/kvm/kvm_main.c, arch/x86/kvm/mmu/)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.arch import PagingMode
from virtintrospect.arch.nested import ept, npt
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.modsyms import module_functions
from virtintrospect.guests.linux.xarray import walk_xarray
from virtintrospect.symbols.layout import Layout

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.types import Types

_MOST_MACHINES = 4096
#: KVM_MAX_VCPUS is at most this.
_MOST_VCPUS = 8192
#: INVALID_PAGE: the tables have been given up, and nothing has run since.
_INVALID = (1 << 64) - 1


class VirtualMachine(NamedTuple):
    """A guest inside a guest."""

    #: The process that runs it (``userspace_pid``).
    pid: int
    #: Nested tables of a virtual CPU: format, and physical address of the top one.
    mode: PagingMode
    root: int
    #: Address of its ``struct kvm``.
    address: int


def virtual_machines(guest: LinuxGuest) -> list[VirtualMachine]:
    """Guests whose nested tables can be found, in the order of ``vm_list``.

    One that has not run since its tables were given up is left out. Needs the types and symbols
    of kvm.ko (its BTF; kallsyms with CONFIG_KALLSYMS_ALL).

    :raises NoSuchTargetError: the guest has no KVM, or no types of it.
    """
    types = guest.module_types("kvm")
    budget = Budget()
    head = _symbol(guest, "kvm", "vm_list", budget)
    if head is None:
        return []
    nodes, problem = walk_list(guest.kernel, head, limit=_MOST_MACHINES, budget=budget)
    guest.note_all([problem])
    offset = types.offsetof("kvm", "vm_list")
    addresses = [node - offset for node in nodes if node >= offset]
    members = {"pid": "userspace_pid", "vcpus": "vcpu_array.xa_head?", "first": "vcpus[0]?"}
    columns = Layout(types, "kvm", members, text=()).lists(guest.kernel, addresses, [])
    intel = any(module.name == b"kvm_intel" for module in guest.modules())
    found = []
    for address, pid, head, first in zip(addresses, *columns.values(), strict=True):
        if pid is None:
            guest.note("unreadable virtual machine", address)
            continue
        vcpus = [entry for _, entry in walk_xarray(guest, head or 0, budget, last=_MOST_VCPUS)]
        root = _root(guest, types, vcpus or [first or 0])
        if root is not None:
            place, levels = root
            found.append(VirtualMachine(pid, (ept if intel else npt)(levels), place, address))
    guest.note_all([budget.problem])
    return found


def _symbol(guest: LinuxGuest, module: str, name: str, budget: Budget) -> int | None:
    return next(iter(module_functions(guest, {module: name}, budget)), None)


def _root(guest: LinuxGuest, types: Types, vcpus: list[int]) -> tuple[int, int] | None:
    """Top table and number of levels, of the first virtual CPU that has any."""
    members = {
        "root": "arch.mmu.root.hpa|arch.mmu.root_hpa",
        "level": "arch.mmu.root_role.level|arch.mmu.shadow_root_level",
    }
    columns = Layout(types, "kvm_vcpu", members, text=()).lists(guest.kernel, vcpus, [])
    for root, level in zip(*columns.values(), strict=True):
        if root not in (None, 0, _INVALID) and level in (4, 5):
            return root, level
    return None
