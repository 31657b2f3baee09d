"""How long a guest stands still for a view of one moment, by three ways.

What --snapshot does; a copy of all resident memory in the pause; and QEMU's background snapshot,
on a QEMU of our own as root, since a stock host allows its users no userfaultfd(2).
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from benchmarks.figures import Figure, show
from tests.guests.lab.channel import Channel
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from tests.guests.lab.initramfs import initramfs
from tests.guests.lab.kernels import kernel
from virtintrospect.consistent import at_one_moment
from virtintrospect.driver import Capability, SupportsPause
from virtintrospect.session import Session, open_session

_SIZES = (512, 2048)
_BACKINGS = ("memfd", "anonymous")
_TABLES = ("info", "modules", "ps", "files", "memory")
_RUNS = 5
_KERNEL = "6.12"
#: Dirties memory as fast as an emulated CPU can.
_CHURN = (
    "(while :; do dd if=/dev/zero of=/churn bs=1048576 count=40 conv=notrunc 2>/dev/null; done) &"
)


def main() -> None:
    """Boot guests of each size and backing, idle and busy, and print the figures as they come."""
    for ram in _SIZES:
        for backing in _BACKINGS:
            with Guest(Config(_KERNEL, backing=backing, ram_mib=ram)) as guest:
                _fill(guest, ram)
                for state in ("idle", "writing"):
                    if state == "writing":
                        guest.execute(_CHURN, 5)
                    with open_session(guest.name) as session:
                        show(f"{ram} MiB, {backing}, {state}", _pauses(session))
            with _emulator(ram, backing) as (channel, monitor):
                _fill(channel, ram)
                for state in ("idle", "writing"):
                    if state == "writing":
                        channel.execute(_CHURN, 5)
                    title = f"{ram} MiB, {backing}, {state}: background snapshot"
                    show(title, _background(monitor, channel.console.parent / state))


def _fill(guest: Channel, ram: int) -> None:
    guest.run(f"dd if=/dev/urandom of=/noise bs=1048576 count={ram * 2 // 5}", 300)


def _pauses(session: Session) -> Iterator[Figure]:
    session.target.require(Capability.PAUSE)
    target = cast("SupportsPause", session.target)
    target.pause()  # opens the way to libvirt, which takes longer than the pause
    target.resume()
    yield Figure("nothing read", _median(lambda: _pause(target, lambda: None)), "ms")
    for name in _TABLES:
        yield Figure(name, _median(partial(_view, session, name)), "ms")
    resident = sum(region.size for region in session.memory.resident()) >> 20
    yield Figure(
        f"copy of {resident} MiB", _median(lambda: _pause(target, lambda: _copy(session))), "ms"
    )


def _view(session: Session, name: str) -> float:
    from virtintrospect.insight.tables import find

    return at_one_moment(session, lambda guest: getattr(guest, find(name).source)()).pause_ms


def _pause(target: SupportsPause, function: Callable[[], object]) -> float:
    start = time.monotonic()
    target.pause()
    try:
        function()
    finally:
        target.resume()
    return (time.monotonic() - start) * 1e3


def _copy(session: Session) -> list[bytes]:
    memory, step = session.memory, 1 << 20
    return [
        memory.read(paddr, min(step, region.end - paddr))
        for region in memory.resident()
        for paddr in range(region.start, region.end, step)
    ]


def _median(function: Callable[[], float]) -> float:
    return statistics.median(function() for _ in range(_RUNS))


class _Monitor:
    """A connection to QMP that remembers when the guest stopped and went on."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rwb")
        self._file.readline()
        self.times: dict[str, float] = {}
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: object) -> Any:
        message = {"execute": command, "arguments": arguments}
        self._file.write(json.dumps(message).encode() + b"\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "event" in answer:
                stamp = answer["timestamp"]
                self.times[answer["event"]] = stamp["seconds"] + stamp["microseconds"] / 1e6
            elif "error" in answer:
                raise RuntimeError(answer["error"]["desc"])
            else:
                return answer["return"]


@contextmanager
def _emulator(ram: int, backing: str) -> Iterator[tuple[Channel, _Monitor]]:
    """A QEMU without libvirt, as this user, with the lab's guest in it."""
    image = kernel(_KERNEL)
    shared = "memory-backend-memfd,share=on" if backing == "memfd" else "memory-backend-ram"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        process = subprocess.Popen([
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,la57=off", "-nodefaults",
            "-M", "q35,memory-backend=pc.ram", "-m", str(ram),
            "-object", f"{shared},id=pc.ram,size={ram}M", "-display", "none",
            "-kernel", str(image.vmlinuz), "-initrd", str(initramfs(image)),
            "-append", "console=ttyS0 quiet panic=-1 pti=off",
            "-serial", f"file:{folder}/console", "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=c,path={folder}/channel,server=on,wait=off",
            "-device", "virtserialport,chardev=c,name=lab.truth",
            "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
        ])  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while not (folder / "qmp").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            channel = Channel("bench", lambda: f"{folder}/channel", folder / "console")
            channel.wait_ready(120)
            yield channel, _Monitor(folder / "qmp")
        finally:
            process.kill()
            process.wait()


def _background(monitor: _Monitor, path: Path) -> Iterator[Figure]:
    """One snapshot into a file, by a socket that we write it from."""
    ability = {"capability": "background-snapshot", "state": True}
    monitor.ask("migrate-set-capabilities", capabilities=[ability])
    monitor.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 33})
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.socket")
        server.listen(1)
        writer = threading.Thread(target=_receive, args=(server, path))
        writer.start()
        start = time.monotonic()
        monitor.ask("migrate", uri=f"unix:{path}.socket")
        while monitor.ask("query-migrate")["status"] not in ("completed", "failed"):
            time.sleep(0.02)
        spent = time.monotonic() - start
        writer.join()
    with open_session(os.fspath(path)) as session:  # it is an image that can be read
        assert session.processes()
    stood = monitor.times["RESUME"] - monitor.times["STOP"]
    yield Figure("pause", stood * 1e3, "ms")
    yield Figure("until it is whole", spent * 1e3, "ms", "", f"{path.stat().st_size >> 20} MiB")
    path.unlink()


def _receive(server: socket.socket, path: Path) -> None:
    connection, _ = server.accept()
    with connection, path.open("wb") as file:
        while data := connection.recv(1 << 20):
            file.write(data)
