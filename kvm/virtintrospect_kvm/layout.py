"""Guest-physical map of QEMU's machines, computed from the command line and domain XML.

QEMU has RAM in blocks; the machine puts them, one after the other, below and above the hole
under 4 GiB that PCI and firmware use. The rules are those of ``pc_q35_init`` in
hw/i386/pc_q35.c, ``pc_init1`` in hw/i386/pc_piix.c and ``pc_memory_init`` in hw/i386/pc.c
(QEMU 7.2):

* q35: all RAM below 4 GiB when it is less than 0xb0000000 bytes, else 2 GiB of it;
* pc (i440fx): all when less than 0xe0000000, else 3 GiB; machine types up to 1.7 have no
  gigabyte alignment and keep 3.5 GiB below;
* ``max-ram-below-4g`` lowers the split (and on pc may also raise it);
* the rest starts at 4 GiB, or at 1 TiB when an AMD CPU's addresses would reach the
  HyperTransport range below 1 TiB (machine types from 7.1 on).

Machines of other architectures are in :mod:`virtintrospect.memory.virt`. Those that are not
known (microvm, pseries) raise :exc:`~virtintrospect.errors.MemoryAccessError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from virtintrospect.domainxml import size_of
from virtintrospect.errors import EncryptedMemoryError, MemoryAccessError
from virtintrospect.memory import Region
from virtintrospect.memory.pc import FOUR_GIB, SHADOW_END, VGA_END, low_memory, ranges
from virtintrospect.memory.virt import ram_start
from virtintrospect_kvm.domainxml import parse_xml
from virtintrospect_kvm.options import CommandLine, Options, parse_size

GIB = 1 << 30

#: AMD's HyperTransport range (AMD_HT_START, AMD_ABOVE_1TB_START in hw/i386/pc.c).
HYPERTRANSPORT_START, HYPERTRANSPORT_END = 0xFD_0000_0000, 0x100_0000_0000

#: Classes of confidential-guest objects (-object, qapi/qom.json).
_ENCRYPTED = {
    "sev-guest": "SEV",
    "sev-snp-guest": "SEV-SNP",
    "tdx-guest": "TDX",
    "s390-pv-guest": "IBM Secure Execution",
    "pef-guest": "PEF",
}
_LAUNCH_SECURITY = {"sev": "SEV", "sev-snp": "SEV-SNP", "tdx": "TDX", "s390-pv": "s390-pv"}

#: Devices that put a memory backend into the guest at an address of their own.
_MEMORY_DEVICES = ("pc-dimm", "virtio-mem-pci")


def this_host_is_amd() -> bool:
    """Whether the CPUs of this very host are AMD's."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(errors="replace")[:4096]
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Block:
    """One RAM block of QEMU."""

    #: Id of the memory backend, or ``pc.ram``.
    name: str
    #: Bytes.
    size: int
    #: ``qom-type`` of the backend; empty when only the domain XML tells of it (hotplug).
    backend: str = "memory-backend-ram"
    #: mem-path of a file backend: a file or a folder.
    path: str = ""


class Piece(NamedTuple):
    """A guest-physical range ``[start, end)`` and the part of a block that is there."""

    start: int
    end: int
    block: int
    offset: int

    @property
    def shift(self) -> int:
        """Guest-physical address less offset in the block."""
        return self.start - self.offset


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks of RAM and where the guest sees them; ``pieces`` are sorted by address."""

    blocks: tuple[Block, ...]
    pieces: tuple[Piece, ...]
    #: Memory devices whose address is known neither from the command line nor the XML.
    unplaced: tuple[str, ...] = ()


def layout_of(
    arguments: list[str], xml: str = "", host_is_amd: Callable[[], bool] = this_host_is_amd
) -> Layout:
    """The map of a QEMU with this command line.

    :param arguments: the command line, the program first.
    :param xml: the live domain XML, which alone knows of hotplugged memory.
    :param host_is_amd: whether the CPUs of the guest's host are AMD's, where that matters.
    :raises EncryptedMemoryError: a confidential guest.
    :raises MemoryAccessError: a machine that is not known, or a command line that makes no
        sense.
    """
    line = CommandLine(arguments)
    root = parse_xml(xml)
    _refuse_encrypted(line, root)
    machine = line.machine
    ram_size, most = _ram_size(line)
    blocks = _boot_blocks(line, machine, ram_size)
    total = sum(block.size for block in blocks)
    if total != ram_size:
        raise MemoryAccessError(
            f"QEMU's command line gives {ram_size:#x} bytes of RAM by -m but {total:#x} in blocks"
        )
    pieces = []
    for start, end, offset in _ranges(line, ram_size, most, host_is_amd):
        pieces += _place(blocks, start, end, offset)
    devices, unplaced = _memory_devices(line, root)
    for block, address in devices:
        pieces.append(Piece(address, address + block.size, len(blocks), 0))
        blocks.append(block)
    pieces.sort()
    for before, after in pairwise(pieces):
        if after.start < before.end:
            raise MemoryAccessError(f"two RAM blocks claim guest address {after.start:#x}")
    return Layout(tuple(blocks), tuple(pieces), tuple(unplaced))


def shadow_of(layout: Layout) -> list[Region]:
    """RAM of a PC that its firmware has made read-only for the guest."""
    return [Region(p.start, SHADOW_END) for p in layout.pieces if p.start == VGA_END]


def _ranges(
    line: CommandLine, ram_size: int, most: int, host_is_amd: Callable[[], bool]
) -> list[tuple[int, int, int]]:
    """Start and end of each guest-physical range of RAM, and its offset in all of RAM."""
    machine = line.machine
    start = ram_start(line.architecture, machine.get("type", ""))
    if start is not None:
        return [(start, start + ram_size, 0)]
    low = split(machine, ram_size)
    high_start = _above_4g_start(line, machine, ram_size, low, most, host_is_amd)
    return ranges(ram_size, low, high_start)


def split(machine: Options, ram_size: int) -> int:
    """How much RAM is below 4 GiB, in bytes.

    :raises MemoryAccessError: the machine type is not known.
    """
    kind = machine.get("type", "")
    low = low_memory(kind, ram_size, parse_size(machine.get("max-ram-below-4g", "0")))
    if low is None:
        raise MemoryAccessError(
            f"QEMU machine {kind[:64] or '(none)'!r}: its memory map is not known",
            hint="q35, pc, and virt of ARM and RISC-V are; for others use an image made by "
            "`virsh dump --memory-only`",
        )
    return low


def _refuse_encrypted(line: CommandLine, root: ElementTree.Element) -> None:
    found = ""
    security = root.find("launchSecurity")
    if security is not None:
        kind = security.get("type", "")
        found = _LAUNCH_SECURITY.get(kind, kind)
    for options in line.objects.values():
        found = _ENCRYPTED.get(options.get("qom-type", ""), found)
    if found:
        raise EncryptedMemoryError(
            f"the guest's memory is encrypted ({found[:64]}): the host sees only ciphertext",
            hint="confidential guests are made to be opaque; use an agent inside the guest",
        )


def _ram_size(line: CommandLine) -> tuple[int, int]:
    """RAM at boot, and the most that hotplug may reach, in bytes."""
    options = line.merged("m", implied="size")
    size = parse_size(options.get("size", "128"), unit="m")
    most = parse_size(options.get("maxmem", "0"), unit="m")
    return size, max(size, most)


def _boot_blocks(line: CommandLine, machine: Options, ram_size: int) -> list[Block]:
    """The blocks that RAM consists of, in the order in which the machine lays them out."""
    objects = line.objects
    names = [options["memdev"] for options in line.all("numa") if "memdev" in options]
    if not names and "memory-backend" in machine:
        names = [machine["memory-backend"]]
    if not names:
        path = line.merged("mem-path", implied="path").get("path", "")
        kind = "memory-backend-file" if path else "memory-backend-ram"
        return [Block("pc.ram", ram_size, kind, path)]
    missing = [name for name in names if name not in objects]
    if missing:
        raise MemoryAccessError(f"QEMU's command line has no -object of id {missing[0][:64]!r}")
    return [_backend(name, objects[name]) for name in names]


def _backend(name: str, options: Options) -> Block:
    return Block(
        name,
        parse_size(options.get("size", "")),
        options.get("qom-type", ""),
        options.get("mem-path", ""),
    )


def _place(blocks: list[Block], start: int, end: int, offset: int) -> list[Piece]:
    """Put ``[offset, …)`` of the blocks, seen as one run, at guest address ``start``."""
    pieces = []
    base = 0
    for index, block in enumerate(blocks):
        inside = max(offset - base, 0)
        if inside < block.size and start < end:
            stop = min(end, start + block.size - inside)
            pieces.append(Piece(start, stop, index, inside))
            offset += stop - start
            start = stop
        base += block.size
    return pieces


def _memory_devices(
    line: CommandLine, root: ElementTree.Element
) -> tuple[list[tuple[Block, int]], list[str]]:
    """DIMMs and virtio-mem, those of the command line first, then hotplugged ones."""
    from_xml = _xml_memory(root)
    objects = line.objects
    found: list[tuple[Block, int]] = []
    unplaced = []
    for options in line.all("device", implied="driver"):
        if options.get("driver") not in _MEMORY_DEVICES or options.get("memdev") not in objects:
            continue
        name = options.get("id", "")
        block = _backend(options["memdev"], objects[options["memdev"]])
        _, base = from_xml.pop(name, (0, None))
        address = options.get("addr" if options["driver"] == "pc-dimm" else "memaddr")
        if address is not None:
            base = parse_size(address)
        if base:
            found.append((block, base))
        else:
            unplaced.append(name)
    for name, (size, base) in sorted(from_xml.items()):
        if base and size:
            found.append((Block(f"mem{name}", size, ""), base))
        else:
            unplaced.append(name)
    return found, unplaced


def _xml_memory(root: ElementTree.Element) -> dict[str, tuple[int, int | None]]:
    """``<memory model='dimm'|'virtio-mem'>``: alias to size and guest-physical address."""
    found = {}
    for device in root.iterfind("devices/memory"):
        if device.get("model") not in ("dimm", "virtio-mem"):
            continue
        alias, size = device.find("alias"), device.find("target/size")
        address = device.find("address[@base]")
        if address is None:
            address = device.find("target/address[@base]")
        base = address.get("base", "") if address is not None else ""
        if alias is not None and size_of(size):
            found[alias.get("name", "")] = (
                size_of(size),
                int(base, 0) if re.fullmatch(r"0x[0-9a-fA-F]+|[0-9]+", base) else None,
            )
    return found


def _above_4g_start(
    line: CommandLine,
    machine: Options,
    ram_size: int,
    low: int,
    most: int,
    host_is_amd: Callable[[], bool],
) -> int:
    """Where RAM goes on above 4 GiB (pc_memory_init, pc_max_used_gpa)."""
    end = FOUR_GIB + ram_size - low
    if most > ram_size:
        slots = parse_size(line.merged("m", implied="size").get("slots", "0"))
        # Device memory: from a whole GiB on, with one GiB a slot for alignment.
        end = -(-end // GIB) * GIB + most - ram_size + slots * GIB
    pci_hole = 2 * GIB if "q35" not in machine.get("type", "") else 32 * GIB
    highest = -(-end // GIB) * GIB + pci_hole - 1
    if highest < HYPERTRANSPORT_START or low == ram_size or not _enforces_amd_hole(machine):
        return FOUR_GIB
    return HYPERTRANSPORT_END if _is_amd(line, host_is_amd) else FOUR_GIB


def _enforces_amd_hole(machine: Options) -> bool:
    """Machine types up to 7.0 ignore the range (enforce_amd_1tb_hole in hw/i386/pc.c)."""
    version = re.fullmatch(r"pc-(?:q35|i440fx)-(\d+)\.(\d+)", machine.get("type", ""))
    return version is None or (int(version[1]), int(version[2])) >= (7, 1)


def _is_amd(line: CommandLine, host_is_amd: Callable[[], bool]) -> bool:
    """Whether the guest's CPU says AuthenticAMD."""
    model, *features = next(
        (list(options.items()) for options in line.all("cpu", implied="model")), [("model", "")]
    )
    for key, value in features:
        if key == "vendor":
            return value == "AuthenticAMD"
    accelerators = [*line.all("accel", implied="accel"), {"accel": line.machine.get("accel", "")}]
    if any(options.get("accel", "").startswith("kvm") for options in accelerators) or any(
        True for _ in line.all("enable-kvm")
    ):
        # Under KVM every model takes the vendor of the host's CPU (x86_cpu_load_model).
        return host_is_amd()
    name = model[1].lower()
    return name in ("", "max", "qemu64", "qemu32", "athlon", "phenom") or name.startswith(
        ("epyc", "opteron")
    )
