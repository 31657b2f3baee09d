"""Images inside a compressed file: gzip, xz, bzip2 and Zstandard.

Such a file can be read only from its beginning, an image is read everywhere: it is unpacked
once, into a file whose pages of zeros are holes, and kept for the next time
(:mod:`~virtintrospect.memory.unpacked`). Until it is whole that file has no name, so that nothing
is left of it when the process ends. Memory is bounded by one piece of input and what comes out of
it; the disk by what is free; CPU time by the size of the input; and a file that would give far
more than any guest's memory packs to is refused.
"""

from __future__ import annotations

import bz2
import lzma
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from virtintrospect.errors import ImageFormatError, MemoryAccessError
from virtintrospect.memory.unpacked import Cache, folder, place

#: Bytes that may come out whatever the ratio, and the ratio from there on. Deflate reaches
#: 1032; memory that is nearly all zeros, packed by the others, not much more than this.
FREELY = 4 << 30
RATIO = 4096

#: Seconds of CPU time that unpacking may take whatever the size of the file, and bytes of it that
#: earn one more. The slowest, bzip2, takes some 4 MB a second of memory that does not pack.
PATIENCE = 60
EARNS_A_SECOND = 1 << 20

#: Bytes of the file system that are left for others.
SPARE = 256 << 20

#: Granularity of holes, in bytes.
_BLOCK = 64 << 10
_PIECE = 256 << 10
_ZEROS = bytes(_BLOCK)

#: Most that an xz file may claim for its dictionary: `xz -9` needs 65 MiB.
_XZ_MEMORY = 256 << 20

#: Largest window of a Zstandard frame: what `zstd --ultra -22 --long` uses.
_ZSTD_WINDOW = 128 << 20

#: Bytes of Zstandard that are given at a time: a block of 4 bytes may stand for 128 KiB.
_ZSTD_PIECE = 512

_ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


class _Decoder(Protocol):
    """One stream of a compressed file."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Stream:
    """What a decoder of the standard library says of itself."""

    _stream: Any

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)

    @property
    def unused_data(self) -> bytes:
        data: bytes = self._stream.unused_data
        return data


class _Gzip(_Stream):
    def __init__(self) -> None:
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self._stream.eof:  # its tail is stale at the end
            yield self._stream.decompress(data, _PIECE)
            data = self._stream.unconsumed_tail


class _Limited(_Stream):
    """Decoders of the standard library that take the most that may come out."""

    def __init__(self, stream: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._stream = stream

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self._stream.decompress(data, _PIECE)
        while not self._stream.eof and not self._stream.needs_input:
            yield self._stream.decompress(b"", _PIECE)


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._stream = context.decompressobj()
        self.unused_data = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), _ZSTD_PIECE):
            try:
                yield self._stream.decompress(data[at : at + _ZSTD_PIECE])
            except self._error as error:
                raise ValueError(str(error)) from error
            if self._stream.eof:
                self.unused_data = self._stream.unused_data + data[at + _ZSTD_PIECE :]
                return

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)


#: First bytes, the name of the format, and what decodes one stream of it.
WRAPPERS: tuple[tuple[bytes, str, Callable[[], _Decoder]], ...] = (
    (b"\x1f\x8b", "gzip", _Gzip),
    (b"\xfd7zXZ\0", "xz", lambda: _Limited(lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY))),
    (b"BZh", "bzip2", lambda: _Limited(bz2.BZ2Decompressor())),
    (b"\x28\xb5\x2f\xfd", "zstd", _Zstd),
)


def unpack(path: str, descriptor: int, index: int) -> int:
    """What is inside a compressed file, as a sparse file.

    :param path: the compressed file's name.
    :param descriptor: the compressed file; it stays the caller's.
    :param index: which of :data:`WRAPPERS` it is.
    :returns: a descriptor, open for reading.
    :raises ImageFormatError: damaged, truncated, or far too much would come out.
    :raises MemoryAccessError: no space, or a library is not installed.
    """
    kept = place()
    cache = Cache(kept) if kept else None
    if cache and (found := cache.find(descriptor)) is not None:
        return found
    new = cache.new() if cache else None
    try:
        with (
            os.fdopen(new, "wb", 0)
            if new is not None
            else tempfile.TemporaryFile(dir=folder(), buffering=0)
        ) as file:
            size = _copy(path, descriptor, index, file.fileno())
            os.ftruncate(file.fileno(), size)
            if cache and new is not None:
                cache.keep(descriptor, file.fileno())
            return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    except ImportError as error:
        raise MemoryAccessError(
            f"{path}: an image compressed with {WRAPPERS[index][1]} needs a library "
            "that is not installed",
            hint="pip install 'virtintrospect[images]'",
        ) from error
    except OSError as error:
        raise MemoryAccessError(
            f"{path}: cannot unpack into {folder()}: {error.strerror}",
            hint="TMPDIR chooses another folder; or unpack it yourself",
        ) from error


def _copy(path: str, source: int, index: int, target: int) -> int:
    """Unpack all of it; the number of bytes, of which the last may be a hole."""
    at, began = 0, time.thread_time()
    pending = bytearray()
    for consumed, data in _pieces(path, source, index):
        if time.thread_time() - began > PATIENCE + consumed / EARNS_A_SECOND:
            raise ImageFormatError(
                path,
                consumed,
                "unpacking takes more time than any memory does",
                hint="unpack it yourself if you trust it",
            )
        pending += data
        if at + len(pending) > FREELY and at + len(pending) > RATIO * consumed:
            raise ImageFormatError(
                path,
                consumed,
                f"more than {RATIO} times its size comes out: no memory packs so well",
                hint="unpack it yourself if you trust it",
            )
        whole = len(pending) // _BLOCK * _BLOCK
        if whole:
            _write(path, target, at, bytes(pending[:whole]))
            at += whole
            del pending[:whole]
    _write(path, target, at, bytes(pending))
    return at + len(pending)


def _write(path: str, target: int, at: int, data: bytes) -> None:
    """Write what is not zero; refused when the file system is nearly full."""
    space = os.fstatvfs(target)
    if space.f_bavail * space.f_frsize < SPARE + len(data):
        raise MemoryAccessError(
            f"{path}: no space to unpack it: {at:,} bytes came out so far",
            hint="TMPDIR chooses another folder; or unpack it yourself",
        )
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        if block != _ZEROS[: len(block)]:
            done = 0
            while done < len(block):
                done += os.pwrite(target, block[done:], at + start + done)


def _pieces(path: str, source: int, index: int) -> Iterator[tuple[int, bytes]]:
    """Bytes of the file that were read so far, and the next that come out of them.

    Several streams may follow each other (pigz, `cat a.gz b.gz`), and zeros behind the last
    (tapes, xz's padding).
    """
    _, name, make = WRAPPERS[index]
    decoder: _Decoder | None = make()
    position, data = 0, b""
    while True:
        if not data:
            data = os.pread(source, _BLOCK, position)
            position += len(data)
        if not data:
            break
        if decoder is None:
            data = data.lstrip(b"\0")
            if not data:
                continue
            decoder = make()
        try:
            for piece in decoder.feed(data):
                yield position, piece
        except _ERRORS as error:
            raise ImageFormatError(path, position, f"damaged {name} data: {error}") from error
        data = decoder.unused_data if decoder.eof else b""
        decoder = None if decoder.eof else decoder
    if decoder is not None:
        raise ImageFormatError(path, position, f"truncated: the {name} data has no end")
