"""Everything that is done with a guest, under watch: errors, time, memory, output."""

from __future__ import annotations

import io
import json
import time
import traceback
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fuzz.anatomy import Anatomy
from tests.fuzz.memory import Image, ImageTarget
from tests.fuzz.mutate import Mutation
from virtintrospect.cli import output
from virtintrospect.cli.escape import printable
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests import identify
from virtintrospect.guests.linux import hung
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight import checks, pagemap
from virtintrospect.insight.columns import Table, record
from virtintrospect.insight.figures import sample
from virtintrospect.insight.patterns import compile_pattern
from virtintrospect.insight.search import search
from virtintrospect.insight.spans import virtual_spans
from virtintrospect.insight.tables import (
    CGROUPS,
    CHECK,
    COMMANDS,
    CRASH,
    HUNG,
    MAP,
    MAP_PROCESSES,
    MAP_RANGES,
    PRESSURE,
    PS,
    STACK,
    guestinfo_table,
)
from virtintrospect.insight.tree import as_tree
from virtintrospect.symbols.store import Store

#: Seconds of CPU time that one table of a guest of this size may take.
SECONDS = 5.0
#: Bytes by which this process may have grown meanwhile.
GROWTH = 1 << 30


#: An image stands still: it is not worth waiting for.
hung._PATIENCE = 0.01


class HostileGuestWonError(AssertionError):
    """A guest broke a rule; the message has the seed."""


class Fuzzer:
    """Runs mutations of one image.

    :param image: RAM of a guest, below the PCI hole in one piece.
    :param cache: an empty directory for the profiles.
    """

    def __init__(self, image: Path, cache: Path) -> None:
        self._image = image
        self._store = Store(cache)
        guest = identify(ImageTarget(Image(image), live=False), self._store)
        assert isinstance(guest, LinuxGuest)
        self._anatomy = Anatomy(guest)
        #: How often each step gave a typed error.
        self.refused: dict[str, int] = {}
        #: Longest that each step took, in seconds, and the seed that did it.
        self.slowest: dict[str, tuple[float, int]] = {}

    def run(self, seed: int) -> None:
        """Bend the image as ``seed`` says and look at everything.

        :raises HostileGuestWonError: what must not happen has happened.
        """
        memory = Image(self._image, mapped=bool(seed % 3))
        mutation = Mutation(self._anatomy, memory, seed)
        mutation.apply()
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        try:
            self._look(memory, seed, cold=mutation.cold)
        except HostileGuestWonError as error:
            story = "\n  ".join(mutation.story)
            raise HostileGuestWonError(f"seed {seed}: {error}\n  {story}") from error.__cause__
        grown = _resident("VmHWM") - before
        if grown > GROWTH:
            raise HostileGuestWonError(f"seed {seed}: grew by {grown >> 20} MiB {mutation.story}")

    def _look(self, memory: Image, seed: int, *, cold: bool) -> None:
        found: list[LinuxGuest] = []
        store = Store(None) if cold else self._store

        def recognise() -> None:
            target = ImageTarget(memory, live=bool(seed % 2))
            guest = identify(target, store)
            assert isinstance(guest, LinuxGuest)
            found.append(guest)

        self._timed("identify", seed, recognise, limit=30.0)
        for guest in found:
            for name, step in steps(guest):
                self._timed(name, seed, step)

    def _timed(
        self, name: str, seed: int, step: Callable[[], object], limit: float = SECONDS
    ) -> None:
        start = time.process_time()  # what others do on this machine is not the guest's doing
        try:
            step()
        except VirtIntrospectError as error:
            self.refused[name] = self.refused.get(name, 0) + 1
            _printable(printable(str(error)))
        except Exception as error:
            raise HostileGuestWonError(f"{name}: {traceback.format_exc()}") from error
        took = time.process_time() - start
        if took > self.slowest.get(name, (0.0, 0))[0]:
            self.slowest[name] = took, seed
        if took > limit:
            raise HostileGuestWonError(f"{name} took {took:.1f} s")


def steps(guest: LinuxGuest) -> Iterable[tuple[str, Callable[[], object]]]:
    """Everything that can be asked of a guest."""
    yield "ps", lambda: _render(PS, guest.processes())
    yield "details", lambda: _render(PS, guest.processes(details=True))
    yield "threads", lambda: _render(PS, guest.processes(threads=True, details=True))
    for table in COMMANDS:
        for arguments in ((1,), (2,)) if table.argument else ((),):
            yield table.name, lambda t=table, a=arguments: _run(guest, t, a)  # type: ignore[misc]
    yield "pressure of cgroups", lambda: _render(PRESSURE, guest.pressure(cgroups=True))
    yield "a cgroup", lambda: _render(CGROUPS, guest.cgroups("/system.slice"))
    yield "hung", lambda: _render(HUNG, guest.hung(0))
    yield "crash", lambda: _render(CRASH, [guest.crash()])
    yield "cpu stacks", lambda: _render(STACK, guest.cpu_stacks())
    for rule in checks.RULES:
        yield f"check {rule.id}", lambda rule=rule: _check(guest, rule.id)  # type: ignore[misc]
    yield "baseline", lambda: checks.take_baseline(guest)
    yield "guestinfo", lambda: _guestinfo(guest)
    yield "balloon", guest.balloon_stats
    yield "file systems", guest.memory_filesystems
    yield "signs of CPUs", guest.cpu_signs
    yield "figures", lambda: json.dumps(sample(guest))
    for path in (b"/etc/passwd", b"/bin/busybox", b"/proc/1/../../lab/modules"):
        yield "file", lambda path=path: guest.cached_file(path)  # type: ignore[misc]
    yield "columns", lambda: guest.tasks.columns(["pid", "comm", "signal.nr_threads"])
    yield "columns again", lambda: guest.tasks.columns(["pid", "comm", "signal.nr_threads"])
    yield "module types", lambda: guest.module_types("bridge").describe("net_bridge")
    yield "user memory", lambda: _user_memory(guest)
    yield "page owners", lambda: _page_owners(guest)
    yield "search", lambda: _search(guest)
    yield "process at", lambda: guest.process_at(guest.kernel.root)
    yield "symbols", lambda: list(guest.symbols.search("*init*", 100))
    for name in ("task_struct", "module", "dentry", "list_head"):
        yield "types", lambda name=name: guest.types.describe(name)  # type: ignore[misc]
    yield "is_current", guest.is_current


def _run(guest: LinuxGuest, table: Table, arguments: tuple[int, ...]) -> None:
    """The command that a table's declaration makes."""
    found = getattr(guest, table.source)(*arguments)
    _render(table, [found] if table.single else found)


def _check(guest: LinuxGuest, rule: str) -> None:
    options = checks.Options(listening=(), newest_kernel="99", baseline={"modules": ["x"]})
    with mock.patch.object(checks, "_AGAIN", (0.0, 0.0)):
        _render(CHECK, checks.check(guest, [rule], options=options))


def _guestinfo(guest: LinuxGuest) -> None:
    values = guest.guestinfo()
    text = io.StringIO()
    output.show(guestinfo_table(values), [values], output="table", single=True, file=text)
    _printable(text.getvalue())


def _user_memory(guest: LinuxGuest) -> None:
    space = guest.process_space(1)
    space.read_available(0x40_0000, 64 << 10)
    space.walk(0x40_0000)


def _page_owners(guest: LinuxGuest) -> None:
    owners = guest.page_owners()
    _render(MAP, pagemap.totals(owners, owners.within(guest.memory.resident())))
    _render(MAP_RANGES, pagemap.ranges(owners))
    _render(MAP_PROCESSES, owners.processes)
    pagemap.picture(owners)


def _search(guest: LinuxGuest) -> None:
    spans = virtual_spans(guest.process_space(1), 1 << 47, guest.note)
    pattern = compile_pattern("workload")
    list(islice(search(guest.memory.read, spans, pattern, virtual=True), 1000))


def _render(table: Table, found: Iterable[Any]) -> None:
    rows = [item if isinstance(item, dict) else record(table, item) for item in found]
    for form in output.FORMATS:
        text = io.StringIO()
        output.show(table, rows, output=form, columns="all", file=text)
        _printable(text.getvalue())
    if table is PS:
        as_tree(rows, indent=True)


def _printable(text: str) -> None:
    bad = {character for character in text if not character.isprintable()} - {"\n"}
    if bad:
        raise HostileGuestWonError(f"unprintable characters reach the terminal: {bad!r}")


def _resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)
