"""A guest as files: its memory, its tables, its processes. What ``mount`` shows.

::

    memory                    guest-physical memory; gaps and absent pages are zeros
    tables/NAME.json, .csv    each table as its command prints it, anew at each opening
    processes/PID/cmdline     its arguments, with spaces between them
    processes/PID/maps        as in /proc
    processes/PID/mem         its memory, by its own addresses
    processes/PID/NAME.json   tables of this process
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.cli.output import show
from virtintrospect.errors import NoSuchTargetError, VirtIntrospectError
from virtintrospect.insight.columns import record
from virtintrospect.insight.tables import COMMANDS, ENV, FILES, MAPS, PS, SOCKETS, STACK, find
from virtintrospect.memory.base import MAX_READ

if TYPE_CHECKING:
    from virtintrospect.session import Session
    from virtintrospect.space import AddressSpace

#: Gives ``size`` bytes from ``offset`` on; fewer at the end.
Reader = Callable[[int, int], bytes]

#: Seconds for which the list of processes is believed: a look-up asks for each part of a path.
_FRESH = 1.0
#: Tables of one process, as files of its folder: of every one, and of those with memory.
_OF_ALL = (FILES.name, SOCKETS.name, STACK.name)
_OF_USER = (ENV.name, MAPS.name, *_OF_ALL)


class Entry(NamedTuple):
    """A file or a folder. Tables have no size before they are opened, like files of /proc."""

    folder: bool
    size: int = 0


class GuestFiles:
    """The tree, by path. All errors are :exc:`OSError`, as of a file system.

    :param session: a session on the guest; stays the caller's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pids: tuple[int, ...] = ()
        self._until = 0.0
        self._tables = [PS.name, *(table.name for table in COMMANDS if not table.argument)]

    def entry(self, path: str) -> Entry:
        """What is at a path."""
        match path.strip("/").split("/"):
            case [""] | ["tables"] | ["processes"]:
                return Entry(folder=True)
            case ["memory"]:
                return Entry(folder=False, size=self._session.memory.end)
            case ["tables", name] if name in self.names("/tables"):
                return Entry(folder=False)
            case ["processes", pid]:
                self._pid(pid)
                return Entry(folder=True)
            case ["processes", pid, name] if name in self.names(f"/processes/{pid}"):
                size = 1 << (self._session.kernel.mode.virtual_bits - 1) if name == "mem" else 0
                return Entry(folder=False, size=size)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def names(self, path: str) -> list[str]:
        """What a folder has."""
        match path.strip("/").split("/"):
            case [""]:
                return ["memory", "tables", "processes"]
            case ["tables"]:
                return [f"{name}.{kind}" for name in self._tables for kind in ("json", "csv")]
            case ["processes"]:
                return [str(pid) for pid in self._processes()]
            case ["processes", pid]:
                tables = _OF_ALL if self._space(self._pid(pid)) is None else _OF_USER
                own = ["cmdline", "maps", "mem"] if tables is _OF_USER else []
                return own + [f"{name}.json" for name in tables]
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def open(self, path: str) -> Reader:
        """The content of a file: that of this moment, but for memory, which goes on changing."""
        self.entry(path)
        try:
            match path.strip("/").split("/"):
                case ["memory"]:
                    return self._physical
                case ["tables", name]:
                    table, _, kind = name.rpartition(".")
                    return _fixed(self._table(table, kind))
                case ["processes", pid, "mem"]:
                    return lambda offset, size: self._virtual(int(pid), offset, size)
                case ["processes", pid, "maps"]:
                    return _fixed(self._maps(int(pid)))
                case ["processes", pid, "cmdline"]:
                    return _fixed(self._cmdline(int(pid)))
                case ["processes", pid, name]:
                    return _fixed(self._table(name.removesuffix(".json"), "json", pid=int(pid)))
        except VirtIntrospectError as error:
            raise _as_os_error(error) from error
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    # -- content ----------------------------------------------------------------------------

    def _physical(self, offset: int, size: int) -> bytes:
        """Guest-physical memory; where there is none, zeros."""
        memory = self._session.memory
        end = min(offset + min(size, MAX_READ), memory.end)
        parts = []
        while offset < end:
            index = memory.region_index(offset)
            if index >= 0:
                stop = min(end, memory.regions[index].end)
                parts.append(memory.read(offset, stop - offset))
            else:
                above = [r.start for r in memory.regions if r.start > offset]
                stop = min(end, min(above, default=end))
                parts.append(bytes(stop - offset))
            offset = stop
        return b"".join(parts)

    def _table(self, name: str, kind: str, **arguments: Any) -> bytes:
        table = find(name)
        if name == PS.name:
            arguments["details"] = True
        rows = [record(table, row) for row in self._session.table(name, **arguments)]
        out = io.StringIO()
        show(table, rows, output=kind, single=table.single, file=out)
        return out.getvalue().encode("utf-8", "backslashreplace")

    def _maps(self, pid: int) -> bytes:
        lines = []
        for area in self._session.maps(pid):
            head = (
                f"{area.start:08x}-{area.end:08x} {area.permissions} {area.offset:08x} "
                f"{area.device} {area.inode}"
            )
            path = (area.path or b"").replace(b"\n", b"\\012")
            lines.append(head.encode() + (b" " + path if path else b"") + b"\n")
        return b"".join(lines)

    def _cmdline(self, pid: int) -> bytes:
        for process in self._session.processes():
            if process.pid == pid:
                return (process.cmdline or b"") + b"\n"
        raise NoSuchTargetError(f"the guest has no process {pid}")

    # -- processes --------------------------------------------------------------------------

    def _processes(self) -> tuple[int, ...]:
        if time.monotonic() > self._until:
            try:
                self._pids = tuple(process.pid for process in self._session.processes())
            except VirtIntrospectError as error:
                raise _as_os_error(error) from error
            self._until = time.monotonic() + _FRESH
        return self._pids

    def _pid(self, text: str) -> int:
        """A process that there is."""
        if (
            text.isdecimal()
            and text.isascii()
            and len(text) < 11
            and int(text) in self._processes()
        ):
            return int(text)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _space(self, pid: int) -> AddressSpace | None:
        """Its address space; ``None`` for a thread of the kernel, and for what has ended."""
        try:
            return self._session.process_space(pid)
        except NoSuchTargetError:
            return None
        except VirtIntrospectError as error:
            raise _as_os_error(error) from error

    def _virtual(self, pid: int, offset: int, size: int) -> bytes:
        """Memory of a process up to the first page that is not there, as /proc/PID/mem has it."""
        space, found = self._space(pid), b""
        for at, piece in space.read_available(offset, min(size, MAX_READ)) if space else ():
            if at != offset + len(found):
                break
            found += piece
        if not found and size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return found


def _fixed(content: bytes) -> Reader:
    return lambda offset, size: content[offset : offset + size]


def _as_os_error(error: VirtIntrospectError) -> OSError:
    code = errno.ENOENT if isinstance(error, NoSuchTargetError) else errno.EIO
    return OSError(code, str(error))
