"""Memory images: from a file to memory, by what is in the file and never by its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from virtintrospect.errors import AccessDeniedError, ImageFormatError, NoSuchTargetError
from virtintrospect.memory.base import PhysicalMemory
from virtintrospect.memory.file import FileImage
from virtintrospect.memory.raw import open_raw
from virtintrospect.memory.wrapped import WRAPPERS, unpack

_UNPACK = "unpack it first"

#: How messages name what is inside a compressed file: offsets are of that.
_UNPACKED = " (unpacked)"
_DUMP = "`virsh dump --memory-only DOMAIN FILE` (format elf) makes an image that can be read"

#: First bytes, what such a file is, and what to do with it.
_FOREIGN = (
    (b"\x04\x22\x4d\x18", "compressed with lz4", f"{_UNPACK}: lz4 -d"),
    (b"\x89LZO\0\r\n\x1a\n", "compressed with lzop", f"{_UNPACK}: lzop -d"),
    (b"QFI\xfb", "a qcow2 disk, which holds no memory that can be read", _DUMP),
    (b"PAGEDU", "a Windows crash dump: not supported yet", _DUMP),
    (b"\x7fVirtualBox", "a VirtualBox saved state: not supported", _DUMP),
)  # fmt: skip


def _elf(path: str, descriptor: int, size: int) -> PhysicalMemory:
    from virtintrospect.memory.elfcore import ElfCore
    from virtintrospect.memory.xencore import XenCore, is_xen_core

    if is_xen_core(os.pread(descriptor, 64, 0)):
        return XenCore(path, descriptor, size)
    return ElfCore(path, descriptor, size)


def _kdump(path: str, descriptor: int, size: int) -> PhysicalMemory:
    from virtintrospect.memory.kdump import SIGNATURES, KdumpImage
    from virtintrospect.memory.source import open_source

    source = open_source(path, descriptor, size)
    if source.read(0, 8, "the signature") not in SIGNATURES:
        raise ImageFormatError(
            path, 0, "a flattened dump that is no kdump", hint="makedumpfile -R makes it plain"
        )
    return KdumpImage(source)


def _lime(path: str, descriptor: int, size: int) -> PhysicalMemory:
    from virtintrospect.memory.lime import open_lime
    from virtintrospect.memory.source import Source

    return open_lime(Source(path, descriptor, size), descriptor)


def _avml(path: str, descriptor: int, size: int) -> PhysicalMemory:
    from virtintrospect.memory.avml import AvmlImage
    from virtintrospect.memory.source import Source

    return AvmlImage(Source(path, descriptor, size))


def _stream(path: str, descriptor: int, size: int) -> PhysicalMemory:
    from virtintrospect.memory.qemustream import StreamImage
    from virtintrospect.memory.source import Source

    return StreamImage(Source(path, descriptor, size))


def _saved(path: str, descriptor: int, size: int) -> PhysicalMemory:
    from virtintrospect.memory.qemustream import open_saved
    from virtintrospect.memory.source import Source

    return open_saved(Source(path, descriptor, size))


#: First bytes of each format that can be read, and what opens it: (path for messages,
#: descriptor, size). Raw memory has no mark: it is what remains.
_FORMATS: tuple[tuple[bytes, Callable[[str, int, int], PhysicalMemory]], ...] = (
    (b"\x7fELF", _elf),
    (b"KDUMP   ", _kdump),
    (b"DISKDUMP", _kdump),
    (b"makedumpfile\0", _kdump),
    (b"EMiL", _lime),
    (b"AVML", _avml),
    (b"QEVM", _stream),
    (b"LibvirtQemud", _saved),
)


def open_image(path: str | Path, *, in_place: bool = False) -> PhysicalMemory:
    """Open a memory image: an ELF core of a guest, or raw memory.

    :param in_place: it may be changed, where its format holds memory as it is (raw, ELF, LiME);
        the memory's ``writable`` tells.
    :raises NoSuchTargetError: there is no such file.
    :raises AccessDeniedError: the file cannot be opened by this user.
    :raises ImageFormatError: it is no memory image that can be read: a directory, an empty or
        truncated file, another format.
    """
    name = os.fspath(path)
    shown = ascii(name)[1:-1] if not name.isprintable() else name
    descriptor = _open(name, shown, os.O_RDWR if in_place else os.O_RDONLY)
    try:
        image = _identify(descriptor, shown)
    except BaseException:
        os.close(descriptor)
        raise
    if in_place and isinstance(image, FileImage):
        image.allow_writing(descriptor)
    return image


def _identify(descriptor: int, shown: str) -> PhysicalMemory:
    """Choose the format by the file's first bytes."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ImageFormatError(shown, 0, f"no memory image: {kind}", hint=_DUMP)
    if not status.st_size:
        raise ImageFormatError(shown, 0, "no memory image: the file is empty", hint=_DUMP)
    start = os.pread(descriptor, 16, 0)
    for magic, open_format in _FORMATS:
        if start.startswith(magic):
            return open_format(shown, descriptor, status.st_size)
    for index, (magic, name, _) in enumerate(WRAPPERS):
        if start.startswith(magic):
            return _unwrap(descriptor, shown, index, name)
    for magic, what, hint in _FOREIGN:
        if start.startswith(magic):
            raise ImageFormatError(shown, 0, what, hint=hint)
    return open_raw(shown, descriptor, status.st_size)


def _unwrap(descriptor: int, shown: str, index: int, name: str) -> PhysicalMemory:
    """The image inside a compressed file; one wrapper, not one in another."""
    if shown.endswith(_UNPACKED):
        raise ImageFormatError(
            shown, 0, f"compressed with {name} inside a compressed file", hint=_UNPACK
        )
    inner = unpack(shown, descriptor, index)
    try:
        image = _identify(inner, shown + _UNPACKED)
    except BaseException:
        os.close(inner)
        raise
    os.close(descriptor)
    return image


def _open(name: str, shown: str, mode: int) -> int:
    """Open without waiting for the other end of a pipe."""
    try:
        return os.open(name, mode | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise AccessDeniedError(
            f"{shown}: {error.strerror}", hint="memory images are private: run as their owner"
        ) from error
    except IsADirectoryError as error:
        raise ImageFormatError(shown, 0, "no memory image: a directory", hint=_DUMP) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NoSuchTargetError(
            f"{shown}: {reason}", hint="a target with a '/' is the path of a memory image"
        ) from error
