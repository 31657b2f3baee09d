"""Arguments and environment of a process that is partly swapped out."""

from __future__ import annotations

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Process

from .lab.guest import Guest
from .lab.truth import Stat

#: Fields of /proc/PID/stat, numbered as in proc(5).
_ARG_START, _ENV_START = 48, 50

_START = """
rm -f /tmp/swapped.out; dd if=/dev/zero of=/tmp/swapped.area bs=1M count=8 2>/dev/null
losetup /dev/loop6 /tmp/swapped.area; mkswap /dev/loop6 >/dev/null; swapon /dev/loop6
/tmp/swapped </dev/null >/tmp/swapped.out 2>/tmp/swapped.log &
until [ $(cat /tmp/swapped.out | wc -l) = 3 ]; do usleep 50000; done
cat /tmp/swapped.log >&2; cat /tmp/swapped.out
"""


def test_what_is_in_memory_is_shown_and_the_rest_said(linux: LinuxGuest, guest: Guest) -> None:
    guest.install("swapped", "/tmp/swapped")
    answer = guest.execute(_START, 120)
    pid, start, end, pages, low, high, env_pages = map(int, answer.stdout.split())
    assert pages == (end - start) // 4096 >= 2, answer
    assert env_pages == (high - low) // 4096 >= 2, answer

    ours = _row(linux, pid)
    (problem,) = linux.take_problems()
    assert problem.what.startswith(f"{end - start} bytes of the command line of process {pid}")
    environment = linux.environment(pid)
    (problem,) = linux.take_problems()
    assert problem.what.startswith(f"{high - low} bytes of the environment of process {pid}")

    # The guest's own look brings the pages back, so it comes last.
    arguments = guest.get(f"/proc/{pid}/cmdline")
    stat = Stat.parse(guest.get(f"/proc/{pid}/stat"))
    first = stat.number(_ARG_START)
    cut = arguments[: start - first] + b"\0" + arguments[end - first :]
    assert ours.cmdline == cut.rstrip(b"\0").replace(b"\0", b" ")
    assert ours.confidence == 1.0
    variables = guest.get(f"/proc/{pid}/environ")[: low - stat.number(_ENV_START)].split(b"\0")
    assert [(entry.name, entry.value) for entry in environment] == [
        (b"FIRST", b"1"), (b"BIG", variables[1].removeprefix(b"BIG=")), (b"LAST", b"2")
    ]  # fmt: skip
    assert _row(linux, pid).cmdline == arguments.rstrip(b"\0").replace(b"\0", b" ")
    assert linux.take_problems() == []
    guest.run(f"kill {pid}; swapoff /dev/loop6; losetup -d /dev/loop6")


def _row(linux: LinuxGuest, pid: int) -> Process:
    return next(row for row in linux.processes() if row.pid == pid)
