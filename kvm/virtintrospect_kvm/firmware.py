"""The firmware that a PC sees below 4 GiB: SeaBIOS in ``pc.bios``, or OVMF in pflash.

QEMU copies the file into anonymous memory and maps that so that it ends at 4 GiB
(``x86_bios_rom_init`` in hw/i386/x86.c, ``pc_system_flash_map`` in hw/i386/pc_sysfw.c; the
second flash lies right below the first). The mapping has no name: it is taken for the firmware
only when its size is the file's and its last 64 KiB are. What cannot be told for sure (a
changed variable store, a file that was updated since the start) is left out of the map.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from virtintrospect.memory.pc import FOUR_GIB
from virtintrospect_kvm.maps import Mapping
from virtintrospect_kvm.options import CommandLine

#: Where QEMU looks for firmware given by a bare name (distributions' ``-L`` defaults).
_FOLDERS = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-firmware")
#: Firmware that is shown below 4 GiB has at most 8 MiB (max-fw-size, hw/i386/pc.c).
_MOST = 16 << 20
_COMPARED = 64 << 10


def find_firmware(
    line: CommandLine, mappings: list[Mapping], memory: int
) -> Iterator[tuple[int, Mapping]]:
    """Guest-physical address and mapping of each part of the firmware that is found.

    :param memory: descriptor of ``/proc/PID/mem``.
    """
    if line.architecture not in ("x86_64", "i386"):
        return  # theirs is elsewhere, and no table of the guest's lies in it
    guards = {mapping.start for mapping in mappings if mapping.permissions == "---p"}
    unnamed = [
        mapping
        for mapping in mappings
        if not mapping.inode and mapping.size <= _MOST and mapping.end in guards
    ]
    end = FOUR_GIB
    for path in _files(line):
        size, tail = _size_and_tail(path)
        if not 0 < size <= _MOST:
            return  # where the next flash lies depends on this one's size
        for mapping in unnamed:
            if mapping.size == size and _read(memory, mapping.end - len(tail), len(tail)) == tail:
                yield end - size, mapping
                break
        end -= size


def _files(line: CommandLine) -> Iterator[Path]:
    """The files that firmware comes from, from 4 GiB downwards."""
    flashes = list(_flashes(line))
    if flashes:
        yield from flashes
        return
    name = line.merged("bios", implied="file").get("file") or line.machine.get("firmware")
    name = name or "bios-256k.bin"
    for folder in ("", *_FOLDERS):
        if (path := Path(folder, name)).is_file():
            yield path
            return


def _flashes(line: CommandLine) -> Iterator[Path]:
    """pflash0 and pflash1, as libvirt gives them (-blockdev) or by -drive if=pflash."""
    nodes = {options.get("node-name", ""): options for options in line.all("blockdev")}
    machine = line.machine
    for key in ("pflash0", "pflash1"):
        node = nodes.get(machine.get(key, ""), {})
        # A format node on a protocol node: two steps, and no loop by any command line.
        for _ in range(2):
            node = nodes.get(node.get("file", ""), node)
        if node.get("filename"):
            yield Path(node["filename"])
    for options in line.all("drive", implied="file"):
        if options.get("if") == "pflash" and options.get("file"):
            yield Path(options["file"])


def _size_and_tail(path: Path) -> tuple[int, bytes]:
    """Size of a firmware file and its last bytes; 0 for what cannot be read or is no file.

    The path comes from QEMU's command line, and a hostile QEMU may have put a FIFO there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0, b""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return 0, b""
        tail = os.pread(descriptor, _COMPARED, max(status.st_size - _COMPARED, 0))
    except OSError:
        return 0, b""
    else:
        return status.st_size, tail
    finally:
        os.close(descriptor)


def _read(descriptor: int, address: int, size: int) -> bytes:
    try:
        return os.pread(descriptor, size, address)
    except OSError:
        return b""
