"""``python -m benchmarks.fleet [audit|page] [GUESTS]``: the figures of docs/fleet.md.

``audit``: CPU of a host on which guests are audited (20), and how long one and three hosts take.
``page``: the page of 5,000 guests with 200 processes each, opened in Chromium.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, show
from tests.ansible.browser import Browser
from tests.ansible.collection import plugin
from tests.ansible.lab.fleet import IDLE, Fleet, Guests
from tests.ansible.lab.host import SshHost
from tests.ansible.made import NOW, fleet
from tests.guests.lab.domain import Config

_GUESTS, _PROCESSES = 5000, 200
_SMALL = Config("6.12", pti=False, ram_mib=192, cmdline=f"{IDLE}=20")
_AUDITED = 20


def main() -> None:
    """Print the figures as they come."""
    asked = [word for word in sys.argv[1:] if not word.isdecimal()] or ["page", "audit"]
    if not set(asked) <= {"page", "audit"}:
        sys.exit("usage: python -m benchmarks.fleet [page|audit] [GUESTS]")
    audited = next((int(word) for word in sys.argv[1:] if word.isdecimal()), _AUDITED)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
          f"load {os.getloadavg()[0]:.0f}")  # fmt: skip
    if "page" in asked:
        show(f"{_GUESTS} guests with {_PROCESSES} processes each", _page())
    if "audit" in asked:
        show("audit.yml over SSH", _audit(audited))


def _page() -> Iterator[Figure]:
    report = plugin("report.fleet").Fleet()
    parts = list(fleet(_GUESTS, _PROCESSES))
    start = _cpu(resource.RUSAGE_SELF)
    for part in parts:
        report.add(part)
    report.finish()
    content, notes = plugin("report.page").page(report, "Fleet", NOW)
    yield Figure("made in", _cpu(resource.RUSAGE_SELF) - start, "s CPU")
    yield Figure("weight", len(content) / 1e6, "MB", "(≤ 20)", " ".join(notes))
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        path = Path(folder, "report.html")
        path.write_bytes(content)
        opened = []
        for _ in range(5):
            start = time.monotonic()
            browser.open(path, "overview")
            opened.append(time.monotonic() - start)
        yield Figure("opened in Chromium, median of 5", sorted(opened)[2], "s", "(≤ 3)")
        start = time.monotonic()
        browser.open(path, "ps")
        yield Figure("opened at its table of processes", time.monotonic() - start, "s")
        for name in ("cmdline", "pid"):
            head = f"document.querySelector('#view-ps th[data-column={name}] button')"
            start = time.monotonic()
            browser.run(f"{head}.click()")
            yield Figure(f"sorted by {name}", time.monotonic() - start, "s")


def _audit(audited: int) -> Iterator[Figure]:
    guests: Guests = {
        "hv1": {f"a{n:02}": _SMALL for n in range(audited)},
        "hv2": {"b00": _SMALL},
        "hv3": {"c00": _SMALL},
    }
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder), guests) as lab:
        host = lab.hosts["hv1"]
        report = str(Path(folder, "report"))
        lab.play("audit", virtintrospect_hosts="hv1", virtintrospect_report=report,
                 virtintrospect_watch="1s")  # fmt: skip  # parses the kernel once
        for what, more, limit in (
            ("tables and rules", {"virtintrospect_hints": False}, "(≤ 10)"),
            ("with hints, watched for 10 s", {}, ""),
        ):
            start, asked = _sessions(host), _used(host.private.pid)
            variables: dict[str, Any] = {"virtintrospect_hosts": "hv1", **more}
            run = lab.play("audit", timeout=900, virtintrospect_report=report, **variables)
            assert run.returncode == 0, run.stdout
            spent, answered = _sessions(host) - start, _used(host.private.pid) - asked
            yield Figure(f"{audited} guests, {what}", spent + answered, "s CPU", limit)
            yield Figure("  of this libvirtd's", answered, "s CPU")
        for name in list(lab.guests):
            if name[0] == "a" and name != "a00":
                lab.guests[name].destroy()
        yield from _forks(lab, report)


def _forks(lab: Fleet, report: str) -> Iterator[Figure]:
    """One guest on each host."""
    times = {}
    for what, hosts in (("one host", "hv1"), ("three hosts", "all:!localhost")):
        with _timed() as taken:
            run = lab.play("audit", virtintrospect_hosts=hosts, virtintrospect_report=report)
        assert run.returncode == 0, run.stdout
        times[what] = taken[0]
        yield Figure(what, taken[0], "s")
    ratio = times["three hosts"] / times["one host"]
    yield Figure("three hosts against one", ratio, "×")


@contextmanager
def _timed() -> Iterator[list[float]]:
    taken: list[float] = []
    start = time.monotonic()
    yield taken
    taken.append(time.monotonic() - start)


def _sessions(host: SshHost) -> float:
    """Seconds of CPU that all sessions of a host's SSH server have used, with all they ran.

    Ansible keeps its connection for a while; what it has used counts when it is closed.
    """
    children = Path(f"/proc/{host.server_pid}/task/{host.server_pid}/children")
    deadline = time.monotonic() + 120
    while children.read_text():
        assert time.monotonic() < deadline, "a session does not end"
        time.sleep(0.2)
    return _ticks(host.server_pid, 13, 14)


def _used(pid: int) -> float:
    """Seconds of CPU that a process has used itself."""
    return _ticks(pid, 11, 12)


def _ticks(pid: int, *fields: int) -> float:
    """Seconds in some fields of /proc/PID/stat, counted from the one behind the command."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(stat[field]) for field in fields) / os.sysconf("SC_CLK_TCK")


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
