"""A booted Linux kernel: its address space, types and symbols, and what reads by them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import (
    CorruptDataError,
    FaultError,
    NotFoundError,
    VirtIntrospectError,
)
from virtintrospect.guests.base import Guest
from virtintrospect.guests.linux import bitmap
from virtintrospect.guests.linux.machine import KernelMapping
from virtintrospect.memory import PhysicalMemory
from virtintrospect.model import Problem
from virtintrospect.space import AddressSpace
from virtintrospect.symbols import vmcoreinfo
from virtintrospect.symbols.layout import Layout
from virtintrospect.symbols.table import Symbols
from virtintrospect.symbols.types import Types
from virtintrospect.symbols.vmcoreinfo import VmCoreInfo
from virtintrospect.translation import LinearRange

if TYPE_CHECKING:
    from virtintrospect.driver import SupportsRegisters

#: Pages that look like VMCOREINFO that are tried.
_MOST_TEXTS = 32
#: Problems remembered until somebody takes them.
_MAX_PROBLEMS = 1000
#: Globals have no BTF type; these are the types of those that the tables read.
GLOBALS = {
    "gate_vma": "vm_area_struct",
    "init_task": "task_struct",
    "init_uts_ns": "uts_namespace",
    "prb": "printk_ringbuffer",
    "shadow_timekeeper": "timekeeper",
    "timekeeper_data": "tk_data",
    "tk_core": "tk_data",
    "vm_committed_as": "percpu_counter",
    "init_pid_ns": "pid_namespace",
    "psi_system": "psi_group",
    "psi_cgroups_enabled": "static_key_true",
    "prog_idr": "idr",
    "map_idr": "idr",
    "psi_disabled": "static_key_false",
}


class LinuxKernel(Guest):
    """What all tables of a Linux guest are read with; the tables themselves are not here.

    :param memory: guest-physical memory.
    :param mapping: where the kernel's image was found.
    :param symbols: its symbols, already at the image's base.
    :param types: its types.
    :param build_id: GNU build id of the kernel.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        mapping: KernelMapping,
        symbols: Symbols,
        types: Types,
        build_id: bytes,
        *,
        live: bool,
    ) -> None:
        super().__init__()
        self.live = live
        #: Where the registers of its CPUs can be read; ``None`` where they cannot.
        self.registers: SupportsRegisters | None = None
        #: The kernel has no symbols of its data (CONFIG_KALLSYMS_ALL); most had to be searched.
        self.functions_only = False
        self.memory = memory
        self.mapping = mapping
        self.machine = mapping.machine
        #: PAGE_SHIFT and PAGE_SIZE: what the smallest page of its tables has, and what the kernel
        #: counts in.
        self.page_shift = mapping.mode.levels[-1].shift
        self.page_size = 1 << self.page_shift
        self.symbols = symbols
        self.types = types
        self.build_id = build_id
        self.kernel = self._kernel_space()
        self.banner = self.kernel.string(symbols.address("linux_banner"), 512)
        self._layouts: dict[object, Layout] = {}

    def is_current(self) -> bool:
        """Whether the page table by which it was found still leads to it.

        After a reboot the old kernel may lie untouched in RAM, tables and all; only the
        trampoline is always written anew.
        """
        try:
            banner = self.kernel.read(self.symbols.address("linux_banner"), len(self.banner))
            same = self.machine.maps(self.memory, self.mapping)
        except VirtIntrospectError:
            return False
        return banner == self.banner and same

    def layout(
        self,
        name: str,
        members: Sequence[str] | Mapping[str, str],
        text: Collection[str] | None = None,
    ) -> Layout:
        """A compiled :class:`~virtintrospect.symbols.layout.Layout`, made once."""
        wanted = members if isinstance(members, Mapping) else {m: m for m in members}
        key = (name, tuple(wanted.items()), None if text is None else tuple(text))
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = Layout(self.types, name, members, text)
        return layout

    def entries(self, head: int | str, name: str, member: str) -> list[int]:
        """A linked list: :func:`~virtintrospect.guests.linux.lists.walk_list`."""
        from virtintrospect.guests.linux.lists import walk_list

        start = self.symbols.address(head) if isinstance(head, str) else head
        offset = self.types.offsetof(name, member)
        nodes, problem = walk_list(self.kernel, start)
        self.note_all([problem])
        return [node - offset for node in nodes if node >= offset]

    def read_global(
        self,
        symbol: str,
        members: Sequence[str] | Mapping[str, str],
        text: Collection[str] = (),
    ) -> dict[str, Any]:
        """Members of a global variable whose type :data:`GLOBALS` tells; ``text`` as Layout's."""
        layout = self.layout(GLOBALS[symbol], members, text)
        return layout.read(self.kernel, self.symbols.address(symbol))

    def pointer(self, symbol: str) -> int:
        """The pointer, or number of that size, that a global variable holds."""
        return self.kernel.read_pointer(self.symbols.address(symbol))

    def user_space(self, pgd: int) -> AddressSpace:
        """The address space behind ``mm_struct.pgd``, a kernel virtual address."""
        kernel = self.kernel
        mode = self.machine.user_mode(kernel.mode)
        root = kernel.translate(pgd)
        return AddressSpace(self.memory, mode, root, pointer_size=kernel.pointer_size)

    def without(self, what: str) -> NotFoundError:
        """What to raise where the symbols of a part of the kernel are not there."""
        if self.functions_only:
            return NotFoundError(
                f"no {what}: the guest's kernel has symbols of its functions, and few of its data",
                hint="bring its symbols (docs/kernels-without-btf.md)",
            )
        return NotFoundError(f"the guest's kernel was built without {what}")

    def note(self, what: str, address: int) -> None:
        """Remember something that cost a row or a field."""
        self.note_all([Problem(what, address)])

    def note_all(self, problems: Iterable[Problem | None]) -> None:
        """Remember several; ``None`` is no problem. Those above a bound are forgotten."""
        for problem in problems:
            if problem and len(self.problems) < _MAX_PROBLEMS:
                self.problems.append(problem)

    @cached_property
    def vmcoreinfo(self) -> VmCoreInfo | None:
        """What the kernel notes of itself for crash dumps; ``None`` where it notes nothing."""
        try:
            return vmcoreinfo.parse(self.kernel.read(self.pointer("vmcoreinfo_data"), 4096))
        except NotFoundError:  # no such symbol: it may be there all the same
            return self._searched_vmcoreinfo()
        except (FaultError, CorruptDataError):
            return None

    def _searched_vmcoreinfo(self) -> VmCoreInfo | None:
        """By a scan of memory; it must be of this kernel, and of this boot's place of it."""
        start = self.mapping.image.start
        for _, text in islice(vmcoreinfo.find(self.memory), _MOST_TEXTS):
            info = vmcoreinfo.parse(text)
            try:
                if info.build_id == self.build_id and info.symbol("_stext") >= start:
                    return info
            except (NotFoundError, CorruptDataError):
                continue
        return None

    @cached_property
    def cpu_offsets(self) -> list[int]:
        """What to add to a per-CPU address, for each possible CPU (``__per_cpu_offset``)."""
        table = self.symbols.address("__per_cpu_offset")
        cpus = bitmap.read(self, "__cpu_possible_mask")
        size = self.kernel.pointer_size
        return list(self.kernel.gather_pointers([table + size * cpu for cpu in cpus]))

    def _kernel_space(self) -> AddressSpace:
        """The kernel's address space, its two linear ranges checked against the tables."""
        image, mode, size = self.mapping.image, self.mapping.mode, self.types.pointer_size
        partial = AddressSpace(
            self.memory, mode, self.mapping.root, linear=[image], pointer_size=size
        )
        root = self.machine.kernel_root(self.symbols, partial, self.mapping)
        walked = AddressSpace(self.memory, mode, root)
        linear = [image] if walked.verify(image) else []
        direct = self.machine.direct_map(self.symbols, partial, self.mapping)
        if direct is not None and self._direct_map_holds(walked, direct):
            linear.insert(0, direct)
        return AddressSpace(self.memory, mode, root, linear=linear, pointer_size=size)

    def _direct_map_holds(self, walked: AddressSpace, direct: LinearRange) -> bool:
        """Whether the tables map the direct map as we compute it, at both ends of RAM."""
        image, end = self.mapping.image, direct.paddr + direct.end - direct.start
        probes = {image.paddr, self.memory.regions[-1].start if self.memory.regions else 0}
        confirmed = False
        for paddr in probes:
            if not direct.paddr <= paddr < end:
                continue
            try:
                found = walked.translate(direct.start + paddr - direct.paddr)
            except FaultError:
                continue  # a hole, or a page taken out of the direct map: says nothing
            if found != paddr:
                return False
            confirmed = True
        return confirmed
