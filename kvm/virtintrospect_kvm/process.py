"""From a libvirt domain to its QEMU process, and holding on to exactly that process."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from virtintrospect.domain import Domain
from virtintrospect.errors import AccessDeniedError, MemoryAccessError, TargetGoneError

#: A dead guest is noticed at the latest this long after its end, in nanoseconds: reads of
#: mapped memory do not pay a system call each.
CHECK_INTERVAL_NS = 1_000_000

#: Most bytes of a command line that are looked at. Linux's own limit for a stack of 8 MiB.
_MAX_CMDLINE = 2 << 20


class NotHereError(MemoryAccessError):
    """The domain's QEMU is not to be seen from here; its memory may be had by other ways."""


class ElsewhereError(NotHereError):
    """The domain runs on another host."""


class QemuProcess:
    """One running QEMU, held so that a reused PID can never be taken for it.

    Everything under ``/proc/PID`` is opened through a descriptor of that folder: after the
    process ended, such an open fails (ESRCH) even when the PID has a new owner. The pidfd says
    whether the process still runs; both are opened before the UUID on the command line is
    compared, and the process must still be alive after that.

    :param pid: process ID, as seen from here.
    :param uuid: UUID of the domain; ``-uuid`` on the command line must say the same. ``None``:
        the caller has another proof that it is the right process.
    :raises TargetGoneError: there is no such process, or it is not this domain's.
    :raises AccessDeniedError: ``/proc`` hides the process.
    """

    def __init__(self, pid: int, uuid: str | None, name: str) -> None:
        self.pid = pid
        self.uuid = uuid
        self.name = name
        self.check_at = 0
        self._ended = self._outlived = False
        self._pidfd = self._directory = -1
        try:
            self._pidfd = os.pidfd_open(pid)
            self._directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
            #: The command line, as text; undecodable bytes are kept as surrogates.
            self.arguments: list[str] = _arguments(self.read_file("cmdline", _MAX_CMDLINE))
            #: Start in clock ticks since boot: with the PID, the process's identity.
            self.start_time = _start_time(self.read_file("stat", 4096))
        except OSError as error:
            self.close()
            if isinstance(error, PermissionError):
                raise self.denied(error) from error
            raise self.gone() from error
        if uuid is not None and _uuid_of(self.arguments) != uuid.lower():
            self.close()
            raise TargetGoneError(
                f"process {pid} is not the QEMU of domain {name!r} (-uuid differs)",
                hint="the PID was reused; look at the domain again",
            )
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)
        self.check()

    @classmethod
    def find(cls, domain: Domain) -> QemuProcess:
        """The QEMU process of a running domain on this host.

        libvirt's PID file is asked first (``virPidFileReadPath``), in system and in session
        mode; without one every process whose command line carries the domain's UUID counts.

        :raises TargetGoneError: the domain is shut off.
        :raises NotHereError: it runs on another host, or no process or several carry its UUID.
        """
        if not domain.active:
            raise TargetGoneError(
                f"domain {domain.name!r} is {domain.state}: it has no memory",
                hint=f"virsh -c {domain.uri} start {shlex.quote(domain.name)}",
            )
        host = urlsplit(domain.uri).hostname
        if host and host not in ("localhost", "127.0.0.1", "::1", os.uname().nodename.lower()):
            raise ElsewhereError(
                f"domain {domain.name!r} runs on {host}: its memory is not here",
                hint=f"run virt-introspect on {host}",
            )
        for pid in _pid_files(domain.name):
            with contextlib.suppress(TargetGoneError):
                return cls(pid, domain.uuid, domain.name)
        found = list(_scan(domain.uuid))
        if len(found) == 1:
            return cls(found[0], domain.uuid, domain.name)
        if found:
            raise NotHereError(
                f"several processes claim to be domain {domain.name!r}: PIDs "
                + ", ".join(map(str, found[:8])),
                hint="libvirt's PID file /run/libvirt/qemu/NAME.pid would tell; is it readable?",
            )
        raise NotHereError(
            f"no QEMU process with -uuid {domain.uuid} (domain {domain.name!r}) is to be seen",
            hint="run as root, in the PID namespace of QEMU; /proc must not be mounted hidepid",
        )

    def outlive(self) -> None:
        """Do not mind its end any more: what it shared with us is there all the same."""
        self._outlived = True

    def check(self) -> None:
        """Make sure that the process still runs.

        :raises TargetGoneError: it ended.
        """
        if self._pidfd < 0:
            raise MemoryAccessError(f"the memory of domain {self.name!r} is closed")
        if self._outlived:
            self.check_at = time.monotonic_ns() + CHECK_INTERVAL_NS
            return
        if self._ended or self._poll.poll(0):
            raise self.gone()
        self.check_at = time.monotonic_ns() + CHECK_INTERVAL_NS

    def open_file(self, name: str, mode: int = os.O_RDONLY) -> int:
        """Open ``/proc/PID/name``, read-only by default; the caller closes the descriptor.

        :raises AccessDeniedError: privileges are missing.
        :raises TargetGoneError: the process ended.
        """
        try:
            return os.open(name, mode | os.O_CLOEXEC, dir_fd=self._directory)
        except PermissionError as error:
            raise self.denied(error) from error
        except (FileNotFoundError, ProcessLookupError) as error:
            raise self.gone() from error

    def read_file(self, name: str, limit: int) -> bytes:
        """The first ``limit`` bytes of ``/proc/PID/name``; :exc:`OSError` when that fails."""
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(limit)

    def threads(self) -> list[int]:
        """Thread ids, in no order.

        :raises TargetGoneError: the process ended.
        """
        try:
            folder = os.open("task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory)
        except OSError as error:
            raise self.gone() from error
        try:
            return [int(name) for name in os.listdir(folder)]  # noqa: PTH208
        finally:
            os.close(folder)

    def descriptors(self) -> dict[tuple[int, int], str]:
        """Files that the process holds open: (device, inode) to a name for :meth:`open_file`.

        In the order of their numbers, which is the order in which QEMU made its memfds.
        """
        found: dict[tuple[int, int], str] = {}
        try:
            folder = os.open("fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory)
        except PermissionError as error:
            raise self.denied(error) from error
        except OSError as error:
            raise self.gone() from error
        try:
            # A path would name whoever has the PID by now; pathlib knows no descriptors.
            for number in sorted(int(name) for name in os.listdir(folder)):  # noqa: PTH208
                with contextlib.suppress(OSError):
                    status = os.stat(str(number), dir_fd=folder)
                    found.setdefault((status.st_dev, status.st_ino), f"fd/{number}")
        finally:
            os.close(folder)
        return found

    def denied(self, error: OSError) -> AccessDeniedError:
        """What to say when the kernel refuses access to the process."""
        if os.geteuid() == 0:
            hint = "root was refused: a capability is missing, or AppArmor or SELinux forbids it"
        else:
            hint = "run as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
            if self._owned_by_us() and _yama_scope() > 0:
                hint += "; or set kernel.yama.ptrace_scope to 0, the process being your own"
        return AccessDeniedError(
            f"the memory of domain {self.name!r} (QEMU process {self.pid}) cannot be read: "
            f"{error.strerror}",
            hint=hint,
        )

    def close(self) -> None:
        """Let go of the process; closing twice is harmless."""
        for descriptor in (self._pidfd, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._pidfd = self._directory = -1
        self.check_at = 0

    def gone(self) -> TargetGoneError:
        """What to say when the process has ended; from then on :meth:`check` says so too."""
        self._ended = True
        self.check_at = 0
        return TargetGoneError(
            f"the QEMU process {self.pid} of domain {self.name!r} has ended",
            hint="the guest was shut down or migrated; look at the domain again",
        )

    def _owned_by_us(self) -> bool:
        try:
            return os.fstat(self._directory).st_uid == os.geteuid()
        except OSError:
            return False


def _pid_files(name: str) -> Iterator[int]:
    """PIDs that libvirt noted for a domain of this name, system mode first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if "/" in name or name in (".", ".."):
        return
    for folder in ("/run/libvirt/qemu", f"{runtime}/libvirt/qemu/run"):
        try:
            with Path(folder, f"{name}.pid").open("rb") as file:
                text = file.read(32).strip()
        except OSError:
            continue
        if text.isdigit() and len(text) < 10:
            yield int(text)


def _scan(uuid: str) -> Iterator[int]:
    """PIDs of all visible processes with ``-uuid UUID`` on their command line."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            with Path(entry.path, "cmdline").open("rb") as file:
                arguments = _arguments(file.read(_MAX_CMDLINE))
        except OSError:
            continue
        if _uuid_of(arguments) == uuid.lower():
            yield int(entry.name)


def _arguments(cmdline: bytes) -> list[str]:
    return os.fsdecode(cmdline.rstrip(b"\0")).split("\0")


def _uuid_of(arguments: list[str]) -> str:
    """The value of ``-uuid`` on a QEMU command line, in lower case; empty without one."""
    for option, value in pairwise(arguments):
        if option in ("-uuid", "--uuid"):
            return value.lower()
    return ""


def _start_time(stat: bytes) -> int:
    # The command name is in parentheses and may hold anything, ')' included (proc(5)).
    fields = stat[stat.rfind(b")") + 1 :].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else 0


def _yama_scope() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip() or 0)
    except (OSError, ValueError):
        return 0
