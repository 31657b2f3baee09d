"""Raw memory images: the offset in the file is the guest-physical address.

Or that less the start of RAM, where the architecture has none at zero: the file does not say.
What ``pmemsave 0 SIZE`` of QEMU's monitor writes, and ``dd`` of a memory file. Holes of a
sparse file are memory that reads as zeros.
"""

from __future__ import annotations

from virtintrospect.errors import ImageFormatError
from virtintrospect.memory.base import PAGE_SIZE
from virtintrospect.memory.file import FileImage, Part

#: No kernel lives in less.
SMALLEST = 1 << 20


class RawImage(FileImage):
    """Raw memory. Where its first byte is in guest-physical memory may have to be found out."""

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        super().__init__(path, descriptor, [Part(0, size, 0, size)])

    def move(self, start: int) -> None:
        """Take the first byte for that of guest-physical ``start``."""
        (part,) = self._parts
        self._place([Part(start, start + part.length, 0, part.length)])


def open_raw(path: str, descriptor: int, size: int) -> RawImage:
    """A raw image; the result takes ``descriptor`` over.

    Nothing marks a raw image: any content is possible. What can be told apart here is only
    the size; whether there is a kernel in it is for the recogniser to say.

    :param size: bytes of the file.
    :raises ImageFormatError: the size is none that RAM has.
    """
    if size < SMALLEST or size % PAGE_SIZE:
        raise ImageFormatError(
            path,
            size,
            "no memory image: neither an ELF core nor, by its size, raw memory",
            hint="raw memory is whole pages, 1 MiB at least; "
            "`virsh dump --memory-only DOMAIN FILE` makes an ELF core",
        )
    return RawImage(path, descriptor, size)
