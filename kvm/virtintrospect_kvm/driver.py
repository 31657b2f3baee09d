"""The driver for QEMU guests of libvirt, with KVM or without."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from virtintrospect.domain import Domain
from virtintrospect.driver import READ_ONLY, Access, Capability, Driver, Target, VcpuTime
from virtintrospect.errors import (
    AccessDeniedError,
    EncryptedMemoryError,
    MemoryAccessError,
    TargetGoneError,
)
from virtintrospect.memory import Region
from virtintrospect_kvm.anonymous import ProcessBlock
from virtintrospect_kvm.backing import BackingFile
from virtintrospect_kvm.control import Control, ControlledTarget, control_of, control_of_socket
from virtintrospect_kvm.delays import vcpu_threads, vcpu_times
from virtintrospect_kvm.firmware import find_firmware
from virtintrospect_kvm.gdbtarget import GDBSTUB, GdbTarget
from virtintrospect_kvm.layout import Layout, layout_of, shadow_of
from virtintrospect_kvm.limits import limits
from virtintrospect_kvm.maps import MAX_MAPS, Mapping, find_blocks, parse_maps
from virtintrospect_kvm.memory import KvmMemory
from virtintrospect_kvm.options import CommandLine
from virtintrospect_kvm.pagemap import Pagemap
from virtintrospect_kvm.placement import Placement
from virtintrospect_kvm.process import ElsewhereError, NotHereError, QemuProcess
from virtintrospect_kvm.qmp import refuse_taint
from virtintrospect_kvm.remote import MONITOR, PEEK, open_monitor, open_peek
from virtintrospect_kvm.shared import SharedBlock
from virtintrospect_kvm.standalone import open_qmp, open_qmp_stub

_log = logging.getLogger("virtintrospect.kvm")

MMAP, PROCESS = "kvm-mmap", "kvm-process"


class KvmTarget(ControlledTarget):
    """One QEMU guest's memory.

    Everything that needs a privilege is opened here; reading mapped RAM needs none afterwards.

    :param process: the guest's QEMU; the target takes it over, also when opening fails.
    :param layout: its guest-physical map.
    :param transport: :data:`MMAP` or :data:`PROCESS` alone; otherwise each block in the best way.
    :param write: the guest's RAM may be changed.
    :param control: the way to stop it and to its registers; the target takes it over.
    :raises AccessDeniedError: privileges are missing.
    :raises TargetGoneError: the guest ended meanwhile.
    :raises MemoryAccessError: QEMU's memory is not as the map says.
    """

    def __init__(
        self,
        process: QemuProcess,
        layout: Layout,
        transport: str | None = None,
        *,
        write: bool = False,
        control: Control | None = None,
    ) -> None:
        self.control = control
        self._mode = os.O_RDWR if write else os.O_RDONLY
        self.process = process
        self._placement = Placement(process)
        self.layout = layout
        with contextlib.ExitStack() as stack:
            stack.callback(process.close)
            if control is not None:
                stack.callback(control.close)
            files = process.descriptors()
            mappings = parse_maps(_read(process.open_file("maps"), MAX_MAPS))
            places = find_blocks(layout.blocks, mappings, files)
            shared = [place.shared and transport != PROCESS for place in places]
            if transport == MMAP and not all(shared):
                raise MemoryAccessError(
                    f"the RAM of domain {process.name!r} is QEMU's own: it cannot be mapped",
                    hint="omit --transport; or give it shared RAM for its next start: "
                    "virt-introspect doctor --fix-memory-backing",
                )
            self._pagemap = process.open_file("pagemap")
            stack.callback(os.close, self._pagemap)
            self._mem = process.open_file("mem", self._mode)
            stack.callback(os.close, self._mem)
            blocks: dict[tuple[int, int], tuple[SharedBlock | ProcessBlock, int]] = {}
            for number, shift in dict.fromkeys((p.block, p.shift) for p in layout.pieces):
                pieces = [p for p in layout.pieces if (p.block, p.shift) == (number, shift)]
                start, end = pieces[0].start - shift, pieces[-1].end - shift
                place, windows = places[number], shared[number]
                block = self._open_block(place, start, end - start, files, windows=windows)
                stack.callback(block.close)
                blocks[number, shift] = block, shift + start
            parts = [(Region(p.start, p.end), *blocks[p.block, p.shift]) for p in layout.pieces]
            line = CommandLine(process.arguments)
            self.architecture = line.architecture
            rom = shadow_of(layout)
            for paddr, mapping in find_firmware(line, mappings, self._mem):
                region = Region(paddr, paddr + mapping.size)
                rom.append(region)
                parts.append((region, self._private(mapping.start, mapping.size), paddr))
            parts.sort(key=lambda part: part[0])
            self._memory = KvmMemory(process, parts, rom=rom, writable=write)
            process.check()
            self._resources = stack.pop_all()
        self.transport = MMAP if all(shared) else PROCESS
        self._windows = any(shared)

    @property
    def memory(self) -> KvmMemory:
        """Guest-physical memory."""
        return self._memory

    def write(self, paddr: int, data: bytes) -> None:
        """Change RAM; see :class:`~virtintrospect.driver.SupportsWrite`."""
        self._memory.write(paddr, data)

    def capabilities(self) -> frozenset[Capability]:
        """As of every target; windows only where some RAM is mapped here."""
        found = super().capabilities()
        return found if self._windows else found - {Capability.VIEW}

    def resident_size(self) -> int:
        """Bytes of memory that QEMU has (/proc/PID/statm), the guest's RAM included.

        :raises TargetGoneError: the guest ended.
        """
        try:
            pages = int(self.process.read_file("statm", 256).split()[1])
        except (OSError, IndexError) as error:
            raise self.process.gone() from error
        return pages * os.sysconf("SC_PAGE_SIZE")

    def vcpu_times(self) -> list[VcpuTime]:
        """How long each vCPU ran, and waited for a CPU of this host.

        :raises TargetGoneError: the guest ended.
        """
        return vcpu_times(self.process)

    def vmm_figures(self) -> dict[str, Any]:
        """How this host keeps QEMU's memory, and what its control groups allow it.

        :raises TargetGoneError: the guest ended.
        """
        found = {"id": f"{self.process.pid}:{self.process.start_time}"} | self._placement.look()
        if allowed := limits(self.process, vcpu_threads(self.process)):
            found["limits"] = allowed
        return found

    def check(self) -> None:
        """Make sure that the guest still runs.

        :raises TargetGoneError: it ended.
        """
        self.process.check()

    def outlive(self) -> bool:
        """Go on reading after QEMU's end: shared RAM is there as long as we hold it.

        Guest-physical memory as it was at the end; anonymous RAM goes with its process.
        """
        return self._memory.outlive()

    def close(self) -> None:
        """Release everything; closing twice is harmless."""
        self._resources.close()

    def _open_block(
        self,
        mapping: Mapping,
        start: int,
        size: int,
        files: dict[tuple[int, int], str],
        *,
        windows: bool,
    ) -> SharedBlock | ProcessBlock:
        """Open ``size`` bytes from ``start`` of a RAM block, mapped here if ``windows``."""
        process = self.process
        address = mapping.start + start
        if not mapping.shared:
            return self._private(address, size)
        pagemap = Pagemap(process, self._pagemap, address, size)
        name = files.get((mapping.device, mapping.inode))
        if name is None:
            # QEMU has closed the file, or the file system numbers files in two ways (btrfs).
            name = f"map_files/{mapping.start:x}-{mapping.end:x}"
        descriptor = process.open_file(name, self._mode)
        offset = mapping.offset + start
        if not windows:
            file = BackingFile(descriptor, offset)
            return ProcessBlock(process, pagemap, self._mem, address, size, file)
        try:
            return SharedBlock(process, pagemap, descriptor, offset, size)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise MemoryAccessError(
                f"QEMU's RAM {mapping.path!r} cannot be mapped: {error}"
            ) from error

    def _private(self, address: int, size: int) -> ProcessBlock:
        pagemap = Pagemap(self.process, self._pagemap, address, size)
        return ProcessBlock(self.process, pagemap, self._mem, address, size)


class KvmDriver(Driver):
    """Reads QEMU guests of libvirt: no pause, and no taint unless it is allowed."""

    name = "kvm"
    transports = (MMAP, PROCESS, PEEK, MONITOR, GDBSTUB)
    schemes = ("qmp",)

    def serves(self, domain: Domain) -> bool:
        """Whether the domain belongs to libvirt's QEMU driver."""
        return domain.hypervisor == "QEMU"

    def open(self, domain: Domain, access: Access = READ_ONLY) -> Target:
        """Open the memory of a running domain.

        Without a transport that the user chose: QEMU's memory itself where it can be had, else
        through libvirt.

        :raises UsageError: the transport needs what is not allowed.
        :raises EncryptedMemoryError: a SEV, SEV-SNP or TDX guest.
        :raises AccessDeniedError: privileges are missing.
        :raises TargetGoneError: it is shut off, or ended meanwhile.
        :raises MemoryAccessError: it is elsewhere, or has an unknown machine.
        """
        if access.transport == PEEK:
            return open_peek(domain, access)
        if access.transport == MONITOR:
            return open_monitor(domain, access)
        if access.transport == GDBSTUB:
            return open_gdbstub(domain, access)
        try:
            return open_process(domain, access)
        except (AccessDeniedError, NotHereError) as error:
            if access.transport is not None or not access.slow:
                raise
            return self._open_by_libvirt(domain, access, error)

    def _open_by_libvirt(
        self, domain: Domain, access: Access, why: AccessDeniedError | NotHereError
    ) -> Target:
        """Fall back on libvirt, for memory that cannot be reached from here."""
        _log.info("%s; so libvirt is asked", why.message)
        try:
            try:
                return open_peek(domain, access)
            except (EncryptedMemoryError, TargetGoneError):
                raise
            except MemoryAccessError:
                if not access.taint:
                    raise
                return open_monitor(domain, access)
        except MemoryAccessError as error:
            if isinstance(why, ElsewhereError) or isinstance(error, TargetGoneError):
                raise
            hint = f"{why.hint}; or let libvirt read it, which says: {error.message}"
            raise type(why)(why.message, hint=hint) from error

    def open_url(self, scheme: str, rest: str, access: Access = READ_ONLY) -> Target:  # noqa: ARG002
        """Open a QEMU without libvirt, by its QMP socket: ``qmp:/path``.

        :raises NoSuchTargetError: there is no such socket.
        :raises MemoryAccessError: and its subclasses as of :meth:`open`.
        """
        if access.transport == GDBSTUB:
            return open_qmp_stub(rest, access, KvmTarget)

        def attach(process: QemuProcess, layout: Layout) -> KvmTarget:
            control = control_of_socket(rest)
            return KvmTarget(process, layout, access.transport, write=access.write, control=control)

        return open_qmp(rest, access, attach)


def open_process(domain: Domain, access: Access = READ_ONLY) -> KvmTarget:
    """The memory of a domain's QEMU on this host.

    :param access: its transport is :data:`MMAP`, :data:`PROCESS`, or none: the best way.
    :raises NotHereError: there is no such process to be seen.
    :raises MemoryAccessError: and its subclasses as of :meth:`KvmDriver.open`.
    """
    process = QemuProcess.find(domain)
    try:
        layout = layout_of(process.arguments, domain.xml)
    except BaseException:
        process.close()
        raise
    control = control_of(domain, access)
    return KvmTarget(process, layout, access.transport, write=access.write, control=control)


def open_gdbstub(domain: Domain, access: Access = READ_ONLY) -> GdbTarget:
    """A domain of this host through its gdb stub, which taints it.

    :raises UsageError: ``access`` does not allow that.
    :raises MemoryAccessError: and its subclasses as of :class:`.gdbtarget.GdbTarget`; the
        machine is not known.
    """
    refuse_taint(domain, access)
    reader: KvmTarget | Layout
    try:
        reader = open_process(domain)
    except AccessDeniedError:  # so QEMU reads it for us; its command line is there for all
        with contextlib.closing(QemuProcess.find(domain)) as process:
            reader = layout_of(process.arguments, domain.xml)
    return GdbTarget(domain.name, control_of(domain, access), reader, access)


def _read(descriptor: int, limit: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit)
