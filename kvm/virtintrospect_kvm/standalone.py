"""A QEMU without libvirt, named by its QMP socket: ``qmp:/run/qemu.sock``."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from virtintrospect.driver import Access, Target
from virtintrospect.errors import (
    AccessDeniedError,
    EncryptedMemoryError,
    MemoryAccessError,
    TargetGoneError,
    UsageError,
)
from virtintrospect_kvm.control import control_of_socket
from virtintrospect_kvm.gdbtarget import GdbTarget, KvmReader
from virtintrospect_kvm.layout import Layout, layout_of
from virtintrospect_kvm.options import CommandLine
from virtintrospect_kvm.process import NotHereError, QemuProcess
from virtintrospect_kvm.pulled import PulledMemory
from virtintrospect_kvm.qmp import Monitor, MonitorError, SocketMonitor, unreachable
from virtintrospect_kvm.remote import MONITOR, PEEK, PulledTarget, regions_of
from virtintrospect_kvm.saved import MonitorReader

_log = logging.getLogger("virtintrospect.kvm")

_T = TypeVar("_T")

#: struct ucred of SO_PEERCRED: PID, UID, GID (unix(7)).
_CREDENTIALS = struct.Struct("3i")
#: More memory devices than a QEMU may have slots (hw/i386/acpi-build.c: 256).
_MOST_DEVICES = 256
#: Kinds of plugged memory (MemoryDeviceInfo in qapi/machine.json): driver, and the names of its
#: address and of its size; addresses are called the same on the command line.
_PLUGGED = {
    "dimm": ("pc-dimm", "addr", "size"),
    "virtio-mem": ("virtio-mem-pci", "memaddr", "max-size"),
}


def open_qmp(path: str, access: Access, attach: Callable[[QemuProcess, Layout], Target]) -> Target:
    """The memory of the QEMU behind a QMP socket.

    QEMU's own memory where the process that listens there can be read, whoever else is
    connected; else the monitor. There is no libvirt that could mark anything as tainted.

    :param attach: opens the memory of a QEMU process, which it takes over.
    :raises UsageError: no path, or a transport that goes through libvirt.
    :raises NoSuchTargetError: there is no such socket.
    :raises EncryptedMemoryError: a confidential guest.
    :raises MemoryAccessError: QEMU or its memory cannot be reached.
    """
    if not path:
        raise _no_socket()
    if access.transport == PEEK:
        raise UsageError(
            f"{PEEK} goes through libvirt, which does not know this QEMU", hint="omit --transport"
        )
    if access.transport == MONITOR:
        return _open_monitor(path)
    try:
        return _open_process(path, attach)
    except (EncryptedMemoryError, TargetGoneError):
        raise
    except (AccessDeniedError, NotHereError, _NoQemuError) as error:
        if access.transport is not None:
            raise
        _log.info("%s; so its monitor is asked", error.message)
        return _open_monitor(path)


def open_qmp_stub(
    path: str, access: Access, attach: Callable[[QemuProcess, Layout], KvmReader]
) -> GdbTarget:
    """The same guest through its gdb stub, which QEMU's monitor opens.

    :param attach: opens the memory of a QEMU process, which it takes over.
    :raises NoSuchTargetError: there is no such socket.
    :raises MemoryAccessError: and its subclasses as of :func:`open_qmp` and
        :class:`.gdbtarget.GdbTarget`.
    """
    if not path:
        raise _no_socket()
    reader: KvmReader | Layout
    try:
        reader = _open_process(path, attach)
    except (AccessDeniedError, NotHereError, _NoQemuError):  # so QEMU reads it for us
        with SocketMonitor(path) as monitor:
            reader = layout_of(arguments_of(monitor))
    return GdbTarget(f"qmp:{path}", control_of_socket(path), reader, access)


def _no_socket() -> UsageError:
    return UsageError("qmp: names no socket", hint="write qmp:/path/to/socket")


class _NoQemuError(MemoryAccessError):
    """What listens on the socket does not look like a QEMU that has the guest's RAM."""


def _open_process(path: str, attach: Callable[[QemuProcess, Layout], _T]) -> _T:
    with _connected(path) as connection:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid = _CREDENTIALS.unpack(raw)[0]
        if pid <= 0:
            raise NotHereError(
                f"the process behind {path} is in another PID namespace",
                hint="run virt-introspect there; or --transport monitor",
            )
        process = QemuProcess(pid, None, f"qmp:{path}")
        try:
            # It is the one that made the socket: that is still open, so its PID is not reused.
            waiting = select.poll()
            waiting.register(connection, select.POLLHUP | select.POLLERR)
            if waiting.poll(0):
                raise process.gone()
            layout = layout_of(process.arguments)
        except EncryptedMemoryError:
            process.close()
            raise
        except MemoryAccessError as error:
            process.close()
            if isinstance(error, TargetGoneError):
                raise
            raise _NoQemuError(
                f"process {pid}, behind {path}: {error.message}", hint=error.hint
            ) from error
        return attach(process, layout)


@contextlib.contextmanager
def _connected(path: str) -> Iterator[socket.socket]:
    """A connection that says nothing: QEMU need not even accept it to tell who it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5.0)
        try:
            connection.connect(path)
        except (OSError, ValueError) as error:
            raise unreachable(path, error) from error
        yield connection


def _open_monitor(path: str) -> PulledTarget:
    reader = MonitorReader(SocketMonitor(path))
    try:
        arguments = arguments_of(reader.monitor)
        regions = regions_of(layout_of(arguments))
        memory = PulledMemory(regions, reader.read, reader.most, reader.close)
    except BaseException:
        reader.close()
        raise
    control = control_of_socket(path, reader.monitor)
    return PulledTarget(MONITOR, memory, CommandLine(arguments).architecture, control)


def arguments_of(monitor: Monitor) -> list[str]:
    """What QEMU's command line would say of machine, RAM and processor, from its monitor.

    :raises MemoryAccessError: QEMU does not tell.
    """
    machine = _text(_property(monitor, "/machine", "type")).removesuffix("-machine")
    split = _property(monitor, "/machine", "max-ram-below-4g")
    options = f"{machine},max-ram-below-4g={split}" if _is_size(split) and split else machine
    target = monitor.command("query-target")
    architecture = _text(target.get("arch")) if isinstance(target, dict) else ""
    arguments = [f"qemu-system-{architecture or 'x86_64'}", "-machine", options]
    summary = monitor.command("query-memory-size-summary")
    size = summary.get("base-memory") if isinstance(summary, dict) else None
    if not machine or not _is_size(size):
        raise MemoryAccessError("QEMU's monitor does not tell the machine type or the RAM's size")
    arguments += ["-m", f"size={size}b"]
    vendor = _vendor(monitor)
    if vendor:
        arguments += ["-cpu", f"max,vendor={vendor}"]
    return [*arguments, *_encryption(monitor), *_memory_devices(monitor)]


def _vendor(monitor: Monitor) -> str:
    """CPUID's vendor of the first vCPU; empty where it has none (other architectures)."""
    cpus = monitor.command("query-cpus-fast")
    first = cpus[0] if isinstance(cpus, list) and cpus else {}
    path = first.get("qom-path") if isinstance(first, dict) else None
    return _text(_property(monitor, path, "vendor")) if isinstance(path, str) else ""


def _encryption(monitor: Monitor) -> Iterator[str]:
    """``-object`` of what makes a guest confidential, if there is such a thing."""
    listed = monitor.command("qom-list", {"path": "/objects"})
    for number, item in enumerate(listed if isinstance(listed, list) else []):
        kind = _text(item.get("type")) if isinstance(item, dict) else ""
        if kind.startswith("child<") and kind.endswith("-guest>"):
            yield from ("-object", f"{kind[6:-1]},id=object{number}")


def _memory_devices(monitor: Monitor) -> Iterator[str]:
    """``-object`` and ``-device`` of memory that was plugged in."""
    try:
        listed = monitor.command("query-memory-devices")
    except MonitorError:
        return
    for number, item in enumerate((listed if isinstance(listed, list) else [])[:_MOST_DEVICES]):
        if not isinstance(item, dict) or not isinstance(data := item.get("data"), dict):
            continue
        device, option, size = _PLUGGED.get(_text(item.get("type")), ("", "", ""))
        length, address = data.get(size), data.get(option)
        if device and _is_size(length) and _is_size(address):
            backend = f"backend{number}"
            yield from ("-object", f"memory-backend-ram,id={backend},size={length}")
            place = f"memdev={backend},{option}={address}"
            yield from ("-device", f"{device},id=plugged{number},{place}")


def _property(monitor: Monitor, path: str, name: str) -> Any:
    """A property of a QEMU object; ``None`` where it has none of that name."""
    try:
        return monitor.command("qom-get", {"path": path, "property": name})
    except MonitorError:
        return None


def _text(value: Any) -> str:
    # A comma would begin another option.
    return value if isinstance(value, str) and "," not in value else ""


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64
