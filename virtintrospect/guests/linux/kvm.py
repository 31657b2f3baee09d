"""Guests that a Linux guest runs itself, by its KVM (virt/kvm/kvm_main.c, arch/x86/kvm/mmu/)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.arch import PagingMode
from virtintrospect.arch.nested import ept, npt
from virtintrospect.errors import FaultError, NoSuchTargetError, UnsupportedError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cmdline import MAX_CMDLINE
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.modsyms import module_functions
from virtintrospect.guests.linux.xarray import walk_xarray
from virtintrospect.model import InnerGuest
from virtintrospect.symbols.layout import Layout

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.types import Types

_MOST_MACHINES = 4096
#: KVM_MAX_VCPUS is at most this.
_MOST_VCPUS = 8192
#: INVALID_PAGE: the tables have been given up, and nothing has run since.
_INVALID = (1 << 64) - 1
#: X86_VENDOR_AMD and X86_VENDOR_HYGON (arch/x86/include/asm/processor.h).
_AMD = (2, 9)


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
    of KVM, be it kvm.ko or built in (its BTF; kallsyms with CONFIG_KALLSYMS_ALL).

    :raises NoSuchTargetError: the guest has a KVM, but no types or symbols of it.
    :raises UnsupportedError: the guest is not one of x86-64.
    """
    found = _machines(guest, Budget())
    return [VirtualMachine(m.pid, m.mode, m.root, m.address) for m in found if m.mode]


def inner_guests(guest: LinuxGuest) -> list[InnerGuest]:
    """All guests that KVM knows, with their names; none where there is no KVM.

    :raises NoSuchTargetError: the guest has a KVM, but no types or symbols of it.
    :raises UnsupportedError: the guest is not one of x86-64.
    """
    budget = Budget()
    machines = _machines(guest, budget)
    processes = _processes(guest, {machine.pid for machine in machines}, budget)
    rows = []
    for machine in machines:
        program, arguments = processes.get(machine.pid, (None, []))
        name = _value(arguments, b"-name")
        parts = [part.removeprefix(b"guest=") for part in (name or b"").split(b",")]
        rows.append(
            InnerGuest(
                pid=machine.pid,
                name=next((part for part in parts if part and b"=" not in part), None),
                uuid=_value(arguments, b"-uuid"),
                program=program,
                vcpus=machine.vcpus,
                page_mode=machine.mode.name if machine.mode else None,
                root=machine.root if machine.mode else None,
                address=machine.address,
            )
        )
    guest.note_all([budget.problem])
    return rows


class _Machine(NamedTuple):
    pid: int
    vcpus: int
    mode: PagingMode | None
    root: int
    address: int


def _machines(guest: LinuxGuest, budget: Budget) -> list[_Machine]:
    if guest.machine.name != "x86-64":
        raise UnsupportedError(
            f"guests inside a guest are not found on {guest.machine.name}",
            hint="a guest of x86-64 is asked for those that its KVM runs",
        )
    modular = guest.types.has("module", "name")  # CONFIG_MODULES
    loaded = {module.name for module in guest.modules()} if modular else set()
    known = _known(guest, loaded, budget)
    if known is None:
        return []
    types, head = known
    nodes, problem = walk_list(guest.kernel, head, limit=_MOST_MACHINES, budget=budget)
    guest.note_all([problem])
    offset = types.offsetof("kvm", "vm_list")
    addresses = [node - offset for node in nodes if node >= offset]
    members = {"pid": "userspace_pid", "vcpus": "vcpu_array.xa_head?", "first": "vcpus[0]?"}
    columns = Layout(types, "kvm", members, text=()).lists(guest.kernel, addresses, [])
    found = []
    for address, pid, head, first in zip(addresses, *columns.values(), strict=True):
        if pid is None:
            guest.note("unreadable virtual machine", address)
            continue
        vcpus = [entry for _, entry in walk_xarray(guest, head or 0, budget, last=_MOST_VCPUS)]
        vcpus = vcpus or [first] if first else vcpus
        place, levels = _root(guest, types, vcpus) or (0, 0)
        mode = (npt if _is_amd(guest, loaded) else ept)(levels) if levels else None
        found.append(_Machine(pid, len(vcpus), mode, place, address))
    guest.note_all([budget.problem])
    return found


def _known(guest: LinuxGuest, loaded: set[bytes], budget: Budget) -> tuple[Types, int] | None:
    """Types of the guest's KVM, and the list of its machines; ``None`` where it has no KVM.

    Debian's is a module; ``CONFIG_KVM=y`` puts it into the kernel itself.
    """
    if b"kvm" in loaded:
        where, types = "a module", guest.module_types("kvm")
        head = _symbol(guest, "kvm", "vm_list", budget)
    elif "kvm_init" in guest.symbols:
        where, types = "built in", guest.types
        head = guest.symbols.get("vm_list")
    else:
        return None
    if head is None or not types.has("kvm", "vm_list"):
        lacking = "symbol vm_list" if head is None else "type kvm"
        raise NoSuchTargetError(
            f"the guest has a KVM ({where}), but no {lacking}, by which its guests are found",
            hint="its kernel needs CONFIG_KALLSYMS_ALL and CONFIG_DEBUG_INFO_BTF",
        )
    return types, head


def _is_amd(guest: LinuxGuest, loaded: set[bytes]) -> bool:
    """Whether its KVM uses AMD's nested tables; where both kinds are built in, by the CPU."""
    for name, amd in ((b"kvm_intel", False), (b"kvm_amd", True)):
        if name in loaded:
            return amd
    here = guest.symbols.get("boot_cpu_data")
    if here is None or not guest.types.has("cpuinfo_x86", "x86_vendor"):
        return False
    columns = guest.layout("cpuinfo_x86", ["x86_vendor"]).lists(guest.kernel, [here], [])
    return columns["x86_vendor"][0] in _AMD


def _processes(
    guest: LinuxGuest, pids: set[int], budget: Budget
) -> dict[int, tuple[bytes, list[bytes]]]:
    """Name and arguments of these processes."""
    members = {
        "pid": "tgid",
        "name": "comm",
        "pgd": "mm.pgd",
        "start": "mm.arg_start",
        "end": "mm.arg_end",
    }
    layout = guest.layout("task_struct", members, text=("name",))
    columns = layout.lists(guest.kernel, guest.tasks.addresses(), [])
    found = {}
    for pid, name, pgd, start, end in zip(*columns.values(), strict=True):
        if pid in pids and not budget.late():
            words = _arguments(guest, pgd or 0, start or 0, (end or 0) - (start or 0))
            found[pid] = bytes(name).split(b"\0")[0], words
    return found


def _arguments(guest: LinuxGuest, pgd: int, start: int, size: int) -> list[bytes]:
    try:
        pieces = guest.user_space(pgd).read_available(start, min(size, MAX_CMDLINE))
    except FaultError:
        return []
    return b"\0".join(piece for _, piece in pieces).split(b"\0")


def _value(arguments: list[bytes], option: bytes) -> bytes | None:
    """What stands behind an option."""
    places = [number for number, word in enumerate(arguments[:-1]) if word == option]
    return arguments[places[0] + 1] if places else None


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
