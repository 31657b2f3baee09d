"""What a process has: mappings, open files, mounts, its environment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryArea:
    """One row of ``maps``: a mapping of a process's memory, as /proc/PID/maps has it."""

    pid: int
    #: First virtual address, and the one behind the last.
    start: int
    end: int
    #: ``r``, ``w``, ``x`` or ``-`` each; then ``s`` for shared, ``p`` for private.
    permissions: str
    #: Bytes into the file.
    offset: int
    #: ``major:minor`` of the file system, two hexadecimal digits or more; ``00:00`` for no file.
    device: str | None
    #: 0 for no file.
    inode: int | None
    #: Of the file, or [heap], [stack], [vdso], [anon:…]; ``None`` for unnamed memory.
    path: bytes | None


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One row of ``files``: an open file descriptor."""

    pid: int
    fd: int
    #: As ``readlink /proc/PID/fd/FD`` gives it: a path, ``pipe:[1234]``, ``anon_inode:[eventfd]``.
    path: bytes | None
    #: regular, directory, character, block, fifo, socket, symlink, memfd, eventpoll, …
    type: str | None
    #: O_RDONLY, O_APPEND … (include/uapi/asm-generic/fcntl.h), as /proc/PID/fdinfo/FD has them.
    flags: int | None
    #: Bytes: the file position.
    offset: int
    inode: int | None
    #: ``major:minor`` of the file system, as in /proc/PID/maps.
    device: str | None


@dataclass(frozen=True, slots=True)
class Mount:
    """One row of ``mounts``: a mounted file system in a mount namespace."""

    device: bytes | None
    path: bytes | None
    type: bytes | None
    #: As in /proc/PID/mounts: ``rw,nosuid,relatime``; options of the file system's own left out.
    flags: str
    #: Inode number of the mount namespace, as in ``readlink /proc/PID/ns/mnt``.
    namespace: int | None


@dataclass(frozen=True, slots=True)
class MemoryFilesystem:
    """A mounted file system whose files are memory: tmpfs or ramfs."""

    #: Where it is mounted, or one of the places.
    path: bytes | None
    type: bytes | None
    #: Most bytes that it takes; ``None`` where nothing limits it.
    size: int | None
    used: int
    #: Files, directories and links that there are, and may be; unknown without a limit.
    files: int | None
    files_most: int | None


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """One row of ``env``."""

    name: bytes
    #: ``None`` where there is no ``=``.
    value: bytes | None
