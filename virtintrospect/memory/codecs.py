"""Decompressors of image formats, each bounded by the size that must come out.

zlib is Python's own; the others are the libraries of the extra ``images``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from virtintrospect.errors import MemoryAccessError

#: Gives exactly so many bytes, or raises ``ValueError``.
Decompressor = Callable[[bytes, int], bytes]


def _zlib(data: bytes, size: int) -> bytes:
    try:
        found = zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return found


def _lzo(data: bytes, size: int) -> bytes:
    from lzallright import LZOCompressor, LZOError

    try:
        # A byte of LZO stands for some 255 at most, and blocks are small: bounded.
        return bytes(LZOCompressor.decompress(data, size))
    except LZOError as error:
        raise ValueError("damaged LZO data") from error


def _snappy(data: bytes, size: int) -> bytes:
    from cramjam import DecompressionError, snappy

    out = bytearray(size)
    try:
        written = snappy.decompress_raw_into(data, out)
    except DecompressionError as error:
        raise ValueError(str(error)) from error
    return bytes(out[:written])


def _zstd(data: bytes, size: int) -> bytes:
    from cramjam import DecompressionError, zstd

    out = bytearray(size)
    try:
        written = zstd.decompress_into(data, out)
    except DecompressionError as error:
        raise ValueError(str(error)) from error
    return bytes(out[:written])


_CODECS: dict[str, Decompressor] = {"zlib": _zlib, "lzo": _lzo, "snappy": _snappy, "zstd": _zstd}


def decompressor(name: str) -> Decompressor:
    """The decompressor of this name: zlib, lzo, snappy or zstd.

    It gives exactly the number of bytes that is asked for, or raises ``ValueError``.

    :raises MemoryAccessError: its library is not installed.
    """
    codec = _CODECS[name]

    def exactly(data: bytes, size: int) -> bytes:
        try:
            found = codec(data, size)
        except ImportError as error:
            raise MemoryAccessError(
                f"pages compressed with {name} need a library that is not installed",
                hint="pip install 'virtintrospect[images]'",
            ) from error
        if len(found) != size:
            raise ValueError(f"{len(found)} bytes came out instead of {size}")
        return found

    return exactly
