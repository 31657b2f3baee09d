"""Types that a person brought for a kernel that carries none: files of the cache by build id.

Beside the profiles, which are made from guests and may be dropped at any time, lie these: they
were given by the host's administrator, are never evicted, and serve every guest whose kernel has
that build id. A guest that claims a build id falsely is read by types that do not fit it, which
misleads about that guest alone.

Whatever the types came from, they are kept as BTF, and with the size of a pointer, which BTF
does not record. A file is a head (magic, version, size of a pointer, CRC-32 of the BTF that
begins with that size instead of 0), then the BTF.
"""

from __future__ import annotations

import struct
import zlib

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols.btf import MAX_SIZE, Btf

#: What ends the name of a file; what stands before it is the build id in hexadecimal.
SUFFIX = ".types"

#: Longest build id, in bytes; that of SHA-1 has 20.
MAX_BUILD_ID = 64

_MAGIC = b"VItypes\0"
_VERSION = 1
_HEAD = struct.Struct("<8sHHI")


def pack_types(blob: bytes | memoryview, pointer_size: int) -> tuple[bytes, bytes | memoryview]:
    """The pieces of a file.

    :param blob: raw BTF.
    :param pointer_size: bytes of the kernel's pointers, 4 or 8.
    :raises CorruptDataError: this is no BTF, or no such pointers exist.
    """
    _parse(blob, pointer_size)
    return _HEAD.pack(_MAGIC, _VERSION, pointer_size, zlib.crc32(blob, pointer_size)), blob


def unpack_types(data: memoryview) -> Btf:
    """The types of a file.

    :raises CorruptDataError: it is damaged, or of another version.
    """
    if not _HEAD.size < len(data) <= _HEAD.size + MAX_SIZE:
        raise CorruptDataError("imported types are cut off, or too large", 0)
    magic, version, pointer_size, checksum = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptDataError("no imported types, or of another version", 0)
    blob = data[_HEAD.size :]
    if zlib.crc32(blob, pointer_size) != checksum:
        raise CorruptDataError("imported types are damaged", _HEAD.size)
    return _parse(blob, pointer_size)


def _parse(blob: bytes | memoryview, pointer_size: int) -> Btf:
    if pointer_size not in (4, 8):
        raise CorruptDataError(f"pointers of {pointer_size} bytes", 0)
    types = Btf.parse(blob)
    types.pointer_size = pointer_size
    return types
