"""All of memory: owners of pages, and searching, against simple tools on the same bytes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.figures import Figure, show
from benchmarks.measure import commands, program
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session, open_session

_KERNEL = "6.12"
_RAM = 1024
#: MiB of random bytes in the guest's page cache, so that there is something to search.
_FILLED = 600
_RUNS = 5
_GOAL = "(≤ 1)"
_RULES = 'rule r { strings: $a = "no such text" $b = { de ad ?? ef 01 02 } condition: any of them }'


def main() -> None:
    """Boot a guest of each backing and print the figures as they come."""
    for backing in ("memfd", "anonymous"):
        config = Config(_KERNEL, backing=backing, ram_mib=_RAM)
        with Guest(config) as guest:
            guest.run(
                f"mount -t tmpfs -o size=800m none /mnt 2>/dev/null || mkdir -p /mnt; "
                f"dd if=/dev/urandom of=/mnt/filled bs=1M count={_FILLED} 2>/dev/null",
                timeout=240,
            )
            title = f"{backing}, kernel {guest.release}, {_RAM} MiB, {_FILLED} MiB filled"
            with open_session(guest.name) as session:
                show(title, _figures(session, guest.name))


def _figures(session: Session, name: str) -> Iterator[Figure]:
    guest = session.guest
    assert isinstance(guest, LinuxGuest)
    yield Figure("owners of all pages", _median(guest.page_owners), "s", _GOAL)
    whole = commands([program(), "map", name], _RUNS)
    yield Figure("`map`, whole command", whole.cpu_seconds, "s", "", f"{whole.peak_mib:.0f} MiB")
    held = sum(end - start for start, end in session.memory.resident()) >> 20
    yield Figure("resident", held, "MiB")
    copy = _median(lambda: _copied(session))
    yield Figure("read it all", held / copy, "MiB/s")
    with tempfile.NamedTemporaryFile("w", suffix=".yar") as rules:
        rules.write(_RULES)
        rules.flush()
        for pattern, kind in (
            ("no such text", "text"), ("de ad be ef 01 02", "hex"), ("de ad ?? ef 01 02", "hex"),
            ("no such t[aeiou]xt", "regex"), (rules.name, "yara"),
        ):  # fmt: skip
            took = _median(lambda p=pattern, k=kind: list(session.search(p, k)))  # type: ignore[misc]
            what = "rules" if kind == "yara" else pattern
            yield Figure(
                f"search --{kind} '{what}'",
                held / took,
                "MiB/s",
                "",
                f"{copy / took:.2f} × reading",
            )
    yield from _grep(session)


def _grep(session: Session) -> Iterator[Figure]:
    """``grep`` on the same bytes in a file, from the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        size = 0
        with path.open("wb") as file:
            for start, end in session.memory.resident():
                for at in range(start, end, 1 << 20):
                    size += file.write(session.memory.read(at, min(1 << 20, end - at)))
        run = commands(["/bin/sh", "-c", f"LC_ALL=C grep -c 'no such text' {path} || true"], 3)
        yield Figure("grep of a file with these bytes", (size >> 20) / run.cpu_seconds, "MiB/s")


def _copied(session: Session) -> None:
    for start, end in session.memory.resident():
        for at in range(start, end, 1 << 20):
            session.memory.read(at, min(1 << 20, end - at))


def _median(function: Callable[[], object]) -> float:
    spent = []
    for _ in range(_RUNS):
        start = time.process_time()
        function()
        spent.append(time.process_time() - start)
    return statistics.median(spent)
