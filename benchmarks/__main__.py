"""``python -m benchmarks [MODE …]``: the figures of docs/performance.md and of other pages."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import acquire, modes, pause, scale, transports, whole
from benchmarks.figures import Figure, show
from benchmarks.hints import __main__ as hints
from benchmarks.measure import command, commands, per_call, program
from tests.guests.lab import libvirtd
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session, open_session
from virtintrospect.symbols.store import Store

_MIB = 1 << 20
_KERNEL = "6.1"
#: Plain processes beside the workload's own: together a little over 256.
_SLEEPERS = 170


def main() -> None:
    """Boot the guests and print the figures as they come: of one mode, or of all."""
    asked = sys.argv[1:] or list(_MODES)
    if not set(asked) <= _MODES.keys():
        sys.exit(f"usage: python -m benchmarks [{'|'.join(_MODES)}]")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
          f"Python {platform.python_version()}; CPU time, medians")  # fmt: skip
    with libvirtd.connection():
        for name, run in _MODES.items():
            if name in asked:
                run()


def _small() -> None:
    """A guest of an ordinary size, and attaching to guests of several."""
    for backing in ("memfd", "anonymous"):
        with Guest(Config(_KERNEL, backing=backing, cmdline=f"lab.sleepers={_SLEEPERS}")) as g:
            show(f"{backing}, kernel {g.release}", _whole_command(g.name))
            with open_session(g.name) as session:
                show(f"{backing}, in one process", _in_process(session))
    show("attach against guest RAM (memfd)", _attach())


def _whole_command(name: str) -> Iterator[Figure]:
    bare = commands([sys.executable, "-c", "pass"])
    with tempfile.TemporaryDirectory() as folder:

        def fresh() -> dict[str, str]:
            return {"VIRTINTROSPECT_CACHE": tempfile.mkdtemp(dir=folder)}

        ps = [program(), "ps", name]
        command(ps, fresh())  # compiles the modules
        cold = commands(ps, environment=fresh)
        warm_cache = fresh()
        command(ps, warm_cache)
        warm = commands(ps, environment=lambda: warm_cache)
    yield Figure("python -c pass", bare.cpu_seconds * 1e3, "ms")
    for title, run, limit, peak in (("cold", cold, 600, 120), ("warm", warm, 150, 60)):
        times = f"{run.cpu_seconds / bare.cpu_seconds:.1f} × bare Python"
        yield Figure(f"ps, {title}", run.cpu_seconds * 1e3, "ms", f"(≤ {limit})", times)
        yield Figure(f"ps, {title}: peak memory", run.peak_mib, "MiB", f"(≤ {peak})")


def _in_process(session: Session) -> Iterator[Figure]:
    guest = session.guest
    assert isinstance(guest, LinuxGuest)
    shared = session.target.transport == "kvm-mmap"
    count = len(guest.processes())
    yield Figure(f"all fields of {count} processes", per_call(guest.processes) * 1e3, "ms")
    listed = per_call(lambda: guest.tasks.columns(["pid", "comm"]))
    yield Figure(f"pid and name of {count} processes", listed * 1e6, "µs",
                 "(≤ 100)" if shared else "(≤ 1000)")  # fmt: skip
    yield from _single(guest)
    yield from _bulk(guest)


def _single(guest: LinuxGuest) -> Iterator[Figure]:
    buffer = ctypes.create_string_buffer(8)
    address = ctypes.addressof(buffer)
    plain = per_call(lambda: ctypes.c_uint64.from_address(address).value)
    empty = per_call(lambda: None)
    task = guest.symbols.address("init_task")
    read = guest.kernel.read_u64
    virtual = per_call(lambda: read(task))
    yield Figure("ctypes read of own memory", (plain - empty) * 1e9, "ns")
    yield Figure("64-bit read, virtual", (virtual - empty) * 1e9, "ns", "(≤ 400)",
                 f"{(virtual - empty) / (plain - empty):.1f} × ctypes")  # fmt: skip
    module = next(iter(guest.modules())).address
    walked = per_call(lambda: guest.kernel.translate(module))
    yield Figure("translation, page walk, one address", (walked - empty) * 1e9, "ns")


def _bulk(guest: LinuxGuest) -> Iterator[Figure]:
    import numpy as np

    memory, image = guest.memory, guest.mapping.image
    own = bytearray(_MIB)
    view = memoryview(own)
    copied = per_call(lambda: bytes(view))
    read = per_call(lambda: memory.read(image.paddr, _MIB))
    yield Figure("memcpy of 1 MiB", 1 / copied / 1e3, "GB/s")
    yield Figure("bulk read, 1 MiB pieces", 1 / read / 1e3, "GB/s", "(≥ 80 %)",
                 f"{copied / read:.0%} of memcpy")  # fmt: skip
    tasks = guest.tasks.addresses()[:256]
    gathered = per_call(lambda: guest.kernel.gather(tasks, 64))
    yield Figure(f"gather, {len(tasks)} × 64 bytes", gathered * 1e6, "µs")
    pages = np.arange(image.start, image.end, 4096, dtype=np.uint64)
    walker = guest.kernel.with_root(guest.kernel.root)
    many = per_call(lambda: walker.translate_many(pages)) / len(pages)
    yield Figure("translation in bulk, page walk, a page", many * 1e9, "ns", "(≤ 250)")


def _attach() -> Iterator[Figure]:
    for ram in (512, 2048, 16384):
        with Guest(Config(_KERNEL, ram_mib=ram)) as guest, tempfile.TemporaryDirectory() as folder:
            cold = per_call(partial(_once, guest.name, Store(None)))
            warm_store = Store(Path(folder))
            _once(guest.name, warm_store)
            warm = per_call(partial(_once, guest.name, warm_store))
            yield Figure(f"cold, {ram} MiB", cold * 1e3, "ms")
            yield Figure(f"warm, {ram} MiB", warm * 1e3, "ms")


def _once(name: str, store: Store) -> None:
    with open_session(name, store=store) as session:
        assert session.guest


_MODES: dict[str, Callable[[], None]] = {
    "small": _small,
    "scale": scale.main,
    "acquire": acquire.main,
    "pause": pause.main,
    "whole": whole.main,
    "transports": transports.main,
    "modes": modes.main,
    "hints": lambda: hints.main([]),
}


if __name__ == "__main__":
    main()
