"""Reads a file that a person brings, whatever its format: it is told by its content."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from virtintrospect.errors import CorruptDataError, NoSuchTargetError, UsageError
from virtintrospect.memory.wrapped import WRAPPERS, unpack
from virtintrospect.symbols.brought import Brought, Progress

_BTF_MAGIC = (b"\x9f\xeb\x01", b"\xeb\x9f\x01")
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


def bring(
    path: Path, *, build_id: bytes = b"", release: str = "", progress: Progress | None = None
) -> Brought:
    """What a file says of a kernel: a vmlinux, an ISF profile, a System.map, or raw BTF.

    It may be compressed by gzip, xz, bzip2 or zstd; it is then unpacked into a temporary file.
    Memory: a vmlinux is mapped, what is made of it has at most 32 MiB of types and some 100 MiB of
    tables meanwhile; an ISF profile takes ten times its unpacked size, which is 128 MiB at most.

    :param build_id: which kernel it is for, where the file itself does not say.
    :param release: the same, for lack of a build id.
    :param progress: called with what is done and how much there is, in bytes.
    :raises CorruptDataError: it is damaged, or does not say which kernel it is for.
    :raises UsageError: it is of no known format, or contradicts what was said of it.
    :raises NoSuchTargetError: there is no such file, or it cannot be read.
    """
    try:
        with _content(path) as data:
            found = _read(data, path, progress)
    except CorruptDataError as problem:
        raise CorruptDataError(
            f"{path}: {problem.message}", problem.address, hint=problem.hint
        ) from problem
    except OSError as problem:
        raise NoSuchTargetError(f"cannot read {path}: {problem.strerror}") from problem
    return _of_kernel(found, path, build_id, release)


def _of_kernel(found: Brought, path: Path, build_id: bytes, release: str) -> Brought:
    """What was read, with what else is known of its kernel."""
    if build_id and found.build_id and build_id != found.build_id:
        raise UsageError(
            f"{path} is of another build: its build id is {found.build_id.hex()}",
            hint="leave --build-id out: the file says itself what it is for",
        )
    found = replace(found, build_id=build_id or found.build_id, release=release or found.release)
    if not (found.build_id or found.banner or found.release):
        raise UsageError(
            f"{path} does not say which kernel it is for",
            hint="say --build-id (the error for the guest names it; or: readelf -n vmlinux), "
            "or --release for a System.map",
        )
    if found.symbols is None and not (found.build_id or found.banner):
        raise UsageError(
            f"{path} has types only, and a release does not tell builds apart",
            hint="say --build-id",
        )
    return found


@contextmanager
def _content(path: Path) -> Iterator[memoryview]:
    """The file's bytes, unpacked where it is compressed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = os.pread(descriptor, 8, 0)
        for index, (magic, _, _) in enumerate(WRAPPERS):
            if start.startswith(magic):
                inner = unpack(str(path), descriptor, index)
                os.close(descriptor)
                descriptor = inner
                break
        size = os.fstat(descriptor).st_size
        if not size:
            raise CorruptDataError("the file is empty", 0)
        mapped = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    # The mapping goes when the last view of it does: what was read may still show into it.
    yield memoryview(mapped)


def _read(data: memoryview, path: Path, progress: Progress | None) -> Brought:
    from virtintrospect.symbols import isf, systemmap, vmlinux

    start = bytes(data[:64]).lstrip()
    if vmlinux.looks_like(data):
        return vmlinux.read(data, progress)
    if start.startswith(b"{"):
        return isf.read(data)
    if start.startswith(_BTF_MAGIC):
        return Brought("BTF", types=bytes(data))
    if systemmap.looks_like(data):
        name = path.name
        for ending in _COMPRESSED:
            name = name.removesuffix(ending)
        return systemmap.read(data, name)
    raise UsageError(
        f"{path} is neither a vmlinux, nor an ISF profile, a System.map or raw BTF",
        hint="a vmlinuz has no types: take the vmlinux of the debug package",
    )
