"""One Xen guest, opened."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from virtintrospect.driver import Access, Capability, Target
from virtintrospect.errors import (
    MemoryAccessError,
    NoSuchTargetError,
    TargetGoneError,
    UsageError,
)
from virtintrospect.memory import Region
from virtintrospect.model.event import Trigger
from virtintrospect_xen import registers
from virtintrospect_xen.calls import DomainInfo, Hypervisor
from virtintrospect_xen.frames import PvFrames
from virtintrospect_xen.hold import Holder
from virtintrospect_xen.memory import XenMemory
from virtintrospect_xen.regions import find_regions
from virtintrospect_xen.watching import EventStream
from virtintrospect_xen.window import Mapper, Window

_CHANGING = {Capability.WRITE, Capability.SET_REGISTERS, Capability.EVENTS}
_PAGE = 4096
#: Guests of up to 1 TiB.
_MOST_FRAMES = 1 << 28


class XenTarget(Target):
    """A guest's memory by foreign mapping, its registers by hypercalls.

    :param access: what is allowed.
    :param uuid: the domain's, where it is known: numbers of domains are used again.
    :raises NoSuchTargetError: there is no such domain.
    :raises AccessDeniedError: privileges are missing.
    :raises MemoryAccessError: this is no domain 0 of a Xen host, or the guest has no memory yet.
    """

    transport = "xen-map"

    def __init__(self, domid: int, access: Access, uuid: str = "") -> None:
        self.domid = domid
        self._access = access
        with contextlib.ExitStack() as stack:
            self._hypervisor = stack.enter_context(Hypervisor())
            info = self._hypervisor.info(domid)
            if domid == 0:
                raise UsageError(
                    "domain 0 is the one that looks: it cannot be looked at from itself",
                    hint="its own /proc has what the tables would show",
                )
            if uuid and info.uuid != uuid:
                raise TargetGoneError(f"domain {domid} is another one by now", hint="try again")
            if info.dying:
                raise TargetGoneError(f"domain {domid} ends just now")
            #: What Xen said of the domain when it was opened.
            self.info = info
            self._pages = _pages(info)
            self._frames: PvFrames | None = None
            self._mapper = Mapper(domid)
            stack.callback(self._mapper.close)
            self._memory = self._open_pv(stack) if not info.hvm else self._open_hvm(stack)
            self._memory.writable = access.write
            self._holder = Holder(domid)
            stack.callback(self._holder.close)
            self._resources = stack.pop_all()
        self.architecture = "" if info.hvm else "x86_64"

    def _open_pv(self, stack: contextlib.ExitStack) -> XenMemory:
        bits = self._hypervisor.address_size(self.domid)
        if bits != 64:
            raise MemoryAccessError(
                f"domain {self.domid} is a PV guest of {bits} bits: only those of 64 can be read",
                hint="a 32-bit kernel can be read when it runs as a PVH or HVM guest",
            )
        self._frames = frames = PvFrames(self._hypervisor, self._mapper, self.info)
        stack.callback(frames.close)
        window = Window(self._mapper, frames.count, frames.machine)
        regions = (Region(0, frames.count * _PAGE),)
        memory = XenMemory(window, regions, self._check, frames, frames.forget)
        stack.callback(memory.close)
        return memory

    def _open_hvm(self, stack: contextlib.ExitStack) -> XenMemory:
        awaited, kept = self._hypervisor.populated_on_demand(self.domid)
        # Xen crashes a guest of which more is touched than it may have, also when it is we who do
        # (p2m_pod_demand_populate in xen/arch/x86/mm/p2m-pod.c).
        if awaited > kept:
            raise MemoryAccessError(
                f"domain {self.domid} has not got its memory yet: looking at all of it would "
                "crash it",
                hint="its balloon driver has not begun (maxmem is above memory): try again",
            )
        frames = min(self._hypervisor.highest_frame(self.domid) + 1, _MOST_FRAMES)

        def find() -> tuple[Region, ...]:
            return find_regions(self._mapper, frames, self._pages[0])

        regions = find()
        if not regions:
            self._mapper.check_allowed(0)
            raise MemoryAccessError(
                f"domain {self.domid} has no memory yet", hint="it is being built: try again"
            )
        memory = XenMemory(Window(self._mapper, frames), regions, self._check, find=find)
        stack.callback(memory.close)
        return memory

    @property
    def memory(self) -> XenMemory:
        """Guest-physical memory."""
        return self._memory

    def capabilities(self) -> frozenset[Capability]:
        """As of every target; no windows, as what is mapped may have to go."""
        found = super().capabilities() - {Capability.VIEW}
        if not self.info.hvm:
            found -= {Capability.EVENTS}
        return found if self._access.write else found - _CHANGING

    def close(self) -> None:
        """Release everything; closing twice is harmless."""
        self._resources.close()

    # -- registers --------------------------------------------------------------------------

    @property
    def vcpus(self) -> int:
        """How many vCPUs there are."""
        return self.info.highest_vcpu + 1

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers of one vCPU; CR3 of a PV guest holds a machine address.

        :raises NoSuchTargetError: there is no vCPU of that number, or it was never started.
        :raises TargetGoneError: the guest has ended.
        """
        self._vcpu(vcpu)
        self._now()  # what is left of a domain may still have registers
        if self.info.hvm:
            state = self._hypervisor.hvm_cpu(self.domid, vcpu, registers.HVM_SIZE)
            return registers.of_hvm(state)
        return registers.of_pv(self._hypervisor.context(self.domid, vcpu, registers.CONTEXT_SIZE))

    def set_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Set general registers, RIP, RFLAGS and RSP of one vCPU, and read them back.

        Only a paused guest keeps them as they were set: see :meth:`pause`.

        :raises UsageError: not opened for writing; or a register that Xen does not set.
        :raises MemoryAccessError: Xen refuses, or another value is there afterwards.
        """
        if not self._access.write:
            raise UsageError("registers may not be changed", hint="allow it: --allow-write")
        self._vcpu(vcpu)
        registers.check(values)
        self.pause()
        try:
            context = self._hypervisor.context(self.domid, vcpu, registers.CONTEXT_SIZE)
            self._hypervisor.set_context(self.domid, vcpu, registers.changed(context, values))
            after = self.registers(vcpu)
        finally:
            self.resume()
        wrong = [name for name, value in values.items() if after[name] != value]
        if wrong:
            raise MemoryAccessError(
                f"vCPU {vcpu} has another {wrong[0]} than was set: {after[wrong[0]]:#x}",
                hint="some bits of rflags belong to Xen",
            )

    def _vcpu(self, vcpu: int) -> None:
        if not 0 <= vcpu < self.vcpus:
            raise NoSuchTargetError(f"domain {self.domid} has no vCPU {vcpu}, only {self.vcpus}")

    # -- changing ---------------------------------------------------------------------------

    def write(self, paddr: int, data: bytes) -> None:
        """Change memory; see :class:`~virtintrospect.driver.SupportsWrite`."""
        self._memory.write(paddr, data)

    def pause(self) -> float:
        """Stop all vCPUs; returns when they stand still. Counted.

        :returns: when Xen was asked to, by :func:`time.monotonic`.
        :raises TargetGoneError: the guest has ended.
        """
        self._now()
        return self._holder.pause()

    def resume(self) -> None:
        """Undo one :meth:`pause`."""
        self._holder.resume()

    def watch(self, *triggers: Trigger) -> EventStream:
        """Report what the vCPUs do; see :class:`~virtintrospect.driver.SupportsEvents`."""
        if not self._access.write:
            raise UsageError("the guest may not be disturbed", hint="allow it: --allow-write")
        if not self.info.hvm:
            raise self.without(Capability.EVENTS)
        return EventStream(self.domid, self.info.uuid, triggers)

    # -- life -------------------------------------------------------------------------------

    def check(self) -> None:
        """Make sure that the guest is still there.

        :raises TargetGoneError: it has ended.
        """
        self._now()

    def _now(self) -> DomainInfo:
        try:
            info = self._hypervisor.info(self.domid)
        except NoSuchTargetError as error:
            raise TargetGoneError(f"domain {self.domid} has ended") from error
        if info.dying or info.uuid != self.info.uuid:
            raise TargetGoneError(f"domain {self.domid} has ended")
        return info

    def _check(self) -> bool:
        """Whether the guest's memory has changed its size, or is about to, since the last time."""
        before = self._pages
        self._pages = _pages(self._now())
        return self._pages != before or (self._frames is not None and self._frames.changed)


def _pages(info: DomainInfo) -> tuple[int, int, int, int]:
    """What changes when a guest's memory does.

    A toolstack that moves a balloon says first how much the guest may have: what is mapped
    then must go, or the guest cannot give it back.
    """
    return info.pages, info.paged_pages, info.shared_pages, info.max_pages
