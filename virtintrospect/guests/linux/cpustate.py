"""What the CPUs are at: their current tasks, and their registers where a target has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import FaultError, VirtIntrospectError
from virtintrospect.guests.linux import percpu

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: IRQ_STACK_SIZE (arch/x86/include/asm/page_64_types.h); twice that with KASAN.
_IRQ_STACK = 16384
#: THREAD_SIZE of 32 bits, which ``struct irq_stack`` has (arch/x86/kernel/irq_32.c).
_IRQ_STACK_32 = 8192
#: More than ``struct cea_exception_stacks`` has.
_LARGEST_STACKS = 1 << 20

#: Names of registers in ``struct pt_regs``, and those of the architecture.
_NAMES = {
    "bp": "rbp", "sp": "rsp", "ip": "rip", "ax": "rax", "bx": "rbx", "cx": "rcx", "dx": "rdx",
    "si": "rsi", "di": "rdi", "r8": "r8", "r9": "r9", "r10": "r10", "r11": "r11", "r12": "r12",
    "r13": "r13", "r14": "r14", "r15": "r15",
}  # fmt: skip


class CpuState(NamedTuple):
    """A CPU's registers, as the unwinder wants them."""

    ip: int
    sp: int
    bp: int
    registers: Mapping[str, int]
    #: It runs a program, not the kernel.
    user: bool


class CpuStates:
    """The CPUs that are present: a panic takes all but one offline, where they stand."""

    def __init__(self, guest: LinuxGuest) -> None:
        self._guest = guest
        try:
            self.offsets = percpu.present(guest)
        except VirtIntrospectError as error:
            guest.note(f"no CPUs: {error}", getattr(error, "address", 0))
            self.offsets = {}
        self._running: dict[int, int] | None = None
        self._states: dict[int, CpuState] | None = None

    def running(self, *, fresh: bool = False) -> dict[int, int]:
        """The CPU of each task that is on one (``rq->curr``), by the address of the task."""
        if self._running is None or fresh:
            layout = self._guest.layout("rq", {"curr": "curr"}, text=())
            base = self._guest.symbols.get("runqueues", 0)
            places = percpu.addresses(self._guest, base, list(self.offsets.values()))
            current = layout.lists(self._guest.kernel, places, [])["curr"]
            self._running = {
                task: cpu for cpu, task in zip(self.offsets, current, strict=True) if task
            }
        return self._running

    def state(self, cpu: int) -> CpuState | None:
        """A CPU's registers; ``None`` where the target has none."""
        if self._states is None:
            self._states = self._read_states()
        return self._states.get(cpu)

    def stacks(self, cpu: int) -> list[tuple[int, int]]:
        """Stacks of a CPU that are not a task's: of interrupts and of exceptions."""
        offset = self.offsets.get(cpu)
        if offset is None:
            return []
        found = []
        if self._guest.types.pointer_size == 4:
            return self._stacks_32(offset)
        for symbol, member in (
            ("hardirq_stack_ptr", None),
            ("pcpu_hot", "hardirq_stack_ptr"),  # 6.2 to 6.14
        ):
            top = self._pointer(symbol, "pcpu_hot", member, offset)
            if top:
                end = (top + 15) & ~15  # a slot for the stack that was left may be cut off
                found.append((end - _IRQ_STACK, end))
                break
        bottom = self._pointer("irq_stack_ptr", "", None, offset)  # AArch64
        if bottom:
            found.append((bottom, bottom + _IRQ_STACK))
        base = self._pointer("cea_exception_stacks", "", None, offset)
        if base and "cea_exception_stacks" in self._guest.types:
            size = self._guest.types.sizeof("cea_exception_stacks")
            found += _exception_stacks(self._guest, base) if 0 < size <= _LARGEST_STACKS else []
        return found

    def _stacks_32(self, offset: int) -> list[tuple[int, int]]:
        """Those of interrupts are of 8 KiB, and pointed to at their lowest address."""
        names = ("hardirq_stack_ptr", "softirq_stack_ptr")
        bases = [self._pointer(name, "", None, offset) for name in names]
        found = [(base, base + _IRQ_STACK_32) for base in bases if base]
        top = self._pointer("irq_stack_ptr", "", None, offset)  # ARM: its end
        return [*found, (top - _IRQ_STACK_32, top)] if top else found

    def _pointer(self, symbol: str, name: str, member: str | None, offset: int) -> int | None:
        """A pointer in a per-CPU variable, or in a member of one."""
        guest = self._guest
        if symbol not in guest.symbols:
            return None
        inner = 0
        if member is not None:
            if not guest.types.has(name, member):
                return None
            inner = guest.types.offsetof(name, member)
        (place,) = percpu.addresses(guest, guest.symbols.address(symbol) + inner, [offset])
        try:
            return guest.kernel.read_pointer(place)
        except FaultError:
            return None

    def _read_states(self) -> dict[int, CpuState]:
        """The registers of all virtual CPUs, by the kernel's number of each.

        The kernel's ``gs``, on 32 bits ``fs``, leads to a CPU's own data, and so to its number;
        where that fails, the order of the virtual CPUs is the kernel's.
        """
        target = self._guest.registers
        if target is None:
            return {}
        numbers = {offset: cpu for cpu, offset in self.offsets.items()}
        found = {}
        for vcpu in range(len(self._guest.cpu_offsets)):
            try:
                values = target.registers(vcpu)
            except VirtIntrospectError as error:
                if vcpu == 0:
                    self._guest.note(f"no registers: {error}", 0)
                break
            bases = [values.get(name) for name in ("gs_base", "kernel_gs_base", "fs_base")]
            cpu = next((numbers[base] for base in bases if base in numbers), vcpu)
            found[cpu] = _state(values)
        return found


def _state(values: Mapping[str, int]) -> CpuState:
    if "pstate" in values:
        return _arm64_state(values)
    return _arm_state(values) if "cpsr" in values else _x86_state(values)


def _x86_state(values: Mapping[str, int]) -> CpuState:
    return CpuState(
        ip=values.get("rip", 0),
        sp=values.get("rsp", 0),
        bp=values.get("rbp", 0),
        registers={name: values[key] for name, key in _NAMES.items() if key in values},
        user=values.get("cs", 0) & 3 == 3,
    )


def _arm64_state(values: Mapping[str, int]) -> CpuState:
    """PSTATE has the exception level in its low bits: 0 is that of programs."""
    ip, sp, bp = (values.get(name, 0) for name in ("pc", "sp", "x29"))
    return CpuState(ip, sp, bp, {}, user=values["pstate"] & 0xF == 0)


def _arm_state(values: Mapping[str, int]) -> CpuState:
    """CPSR has the processor's mode in its low bits: 0x10 is that of programs."""
    registers = {f"r{number}": values.get(f"r{number}", 0) for number in range(11)}
    ip, sp, fp, lr = (values.get(name, 0) for name in ("pc", "sp", "r11", "lr"))
    return CpuState(ip, sp, fp, registers | {"r14": lr}, user=values["cpsr"] & 0x1F == 0x10)


def _exception_stacks(guest: LinuxGuest, base: int) -> list[tuple[int, int]]:
    """Each ``…_stack`` of ``struct cea_exception_stacks``; guard pages lie between them."""
    found = [
        (base + member.offset, base + member.offset + member.size)
        for member in guest.types.describe("cea_exception_stacks").members
        if member.name and member.name.endswith("_stack") and 0 < member.size <= _IRQ_STACK * 4
    ]
    return found[:16]
