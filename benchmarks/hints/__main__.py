"""``python -m benchmarks.hints``: recommended against true need, and what following it costs.

True need is known: what the guest says of itself when it does nothing (MemTotal less
MemAvailable), plus what its program was told to work in. Guests of 1 GiB, kernel 6.12.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.hints.advisors import ADVISORS, MIB, POLICY
from tests.guests.lab import libvirtd
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from tests.guests.lab.initramfs import program
from tests.guests.lab.kernels import loose_module
from virtintrospect.host import Host
from virtintrospect.insight.figures import sample
from virtintrospect.insight.hints import Facts, hints
from virtintrospect.insight.history import Window
from virtintrospect.plugin.adjust import follow, undo
from virtintrospect.session import Session, open_session

_CONFIG = Config("6.12", backing="anonymous", pti=False, ram_mib=1024, vcpus=2, cmdline="psi=1")
#: A file of a block device, read again and again, or once.
_READER = """
rm -f /tmp/holes; truncate -s {mib}M /tmp/holes; losetup /dev/loop4 /tmp/holes
exec 3</dev/loop4; n=0
while [ $n -lt {times} ]; do dd if=/dev/loop4 of=/dev/null bs=1M 2>/dev/null; n=$((n+1)); done
echo done > /tmp/load.ready; exec sleep 1000
"""


class Scenario(NamedTuple):
    """A guest in a known state."""

    name: str
    #: Arguments of guest/load.c; empty for nothing.
    load: str
    #: MiB that its work needs on top of what the idle guest does.
    need: int
    #: Read a file of so many MiB, so many times.
    read: tuple[int, int] = (0, 0)
    #: MiB that were used before, and freed.
    before: int = 0


SCENARIOS = (
    Scenario("idle", "", 0),
    Scenario("works in 200 MiB", "touch 200", 200),
    Scenario("works in 400 MiB", "touch 400", 400),
    Scenario("works in 600 MiB", "touch 600", 600),
    Scenario("reads 300 MiB thrice", "", 300, read=(300, 3)),
    Scenario("reads 300 MiB once", "", 0, read=(300, 1)),
    Scenario("idle, once used 700 MiB", "", 0, before=700),
    Scenario("computes, 4 threads", "spin 4", 0),
)


def main() -> None:
    """Boot a guest, bring it into each state, and print what each advisor says."""
    with libvirtd.connection(), Guest(_CONFIG) as guest:
        guest.put("/tmp/load", program("load").read_bytes(), 0o755)
        guest.put("/tmp/virtio_balloon.ko", loose_module(_CONFIG.kernel, "virtio_balloon"))
        guest.run("insmod /tmp/virtio_balloon.ko")
        print(f"kernel {guest.release}, 1 GiB, 2 vCPUs; MiB; error in percent of true need")
        base = _used(guest)
        names = list(ADVISORS)
        print(f"{'':26}{'need':>7}" + "".join(f"{name:>18}" for name in names))
        false: dict[str, int] = dict.fromkeys(names, 0)
        for scenario in SCENARIOS:
            _row(guest, scenario, base, false)
        print("shrinks below need: " + ", ".join(f"{n} {count}" for n, count in false.items()))
        _notice(guest)
        _slowdown(guest)
    _cost()


def _row(guest: Guest, scenario: Scenario, base: int, false: dict[str, int]) -> None:
    with _state(guest, scenario), open_session(guest.name) as session:
        facts = _watch(session)
    current = facts.current or 0
    total = int(facts.window.last("memory", "memory_total") or 0)
    need = base + scenario.need * MIB + current - total
    cells = []
    for name, advisor in ADVISORS.items():
        said = advisor(facts)
        false[name] += said < need
        cells.append(f"{said // MIB:>9} {100 * (said - need) / need:>+7.0f}%")
    print(f"{scenario.name:26}{need // MIB:>7}" + "".join(cells), flush=True)


@contextmanager
def _state(guest: Guest, scenario: Scenario) -> Iterator[None]:
    if scenario.before:
        with _state(guest, Scenario("", f"touch {scenario.before}", 0)):
            pass
    ready = "for i in $(seq 1200); do [ -e /tmp/load.ready ] && exit; usleep 50000; done; exit 1"
    guest.run("rm -f /tmp/load.ready")
    mib, times = scenario.read
    if mib:
        guest.put("/tmp/reader.sh", _READER.format(mib=mib, times=times).encode())
        guest.run(f"sh /tmp/reader.sh >/dev/null 2>&1 & {ready}", 90)
    elif scenario.load:
        guest.run(f"/tmp/load {scenario.load} >/dev/null 2>&1 & {ready}", 90)
    try:
        yield
    finally:
        stop = "killall -9 load; kill $(pidof sleep); losetup -d /dev/loop4; rm -f /tmp/holes"
        guest.run(f"{stop}; echo 3 > /proc/sys/vm/drop_caches; sleep 1", check=False)


def _watch(session: Session, count: int = 9, step: float = 1.0) -> Facts:
    taken = []
    for _ in range(count):
        taken.append(sample(session.guest, session.target))
        time.sleep(step)
    return Facts(Window(taken), POLICY, session.domain)


def _used(guest: Guest) -> int:
    lines = guest.get("/proc/meminfo").decode().splitlines()
    words = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    return words["MemTotal"] - words["MemAvailable"]


def _notice(guest: Guest) -> None:
    """How long a leak goes on before it is named."""
    with _state(guest, Scenario("", "grow 10", 0)), open_session(guest.name) as session:
        start, taken = time.monotonic(), []
        while time.monotonic() - start < 60:
            taken.append(sample(session.guest, session.target))
            facts = Facts(Window(taken), POLICY, session.domain)
            if any("likely leak" in hint.reason for hint in hints(facts)):
                break
            time.sleep(1)
        print(f"a leak of 10 MiB a second is named after {time.monotonic() - start:.0f} s")


def _slowdown(guest: Guest) -> None:
    """The guest's own work before and after its memory was taken as recommended."""
    with (
        _state(guest, Scenario("", "touch 300", 0)),
        open_session(guest.name) as session,
        Host("qemu:///system", writable=True) as host,
        tempfile.TemporaryDirectory() as folder,
    ):
        before = _passes(guest)
        hint = next(
            h for h in hints(_watch(session)) if (h.resource, h.action) == ("memory", "shrink")
        )
        domain = host.domain(guest.name)
        log = Path(folder, "log")
        done = follow(
            hint, domain, host, POLICY, lambda: sample(session.guest, session.target), log
        )
        after = _passes(guest)
        undo(domain, host, log)
    print(
        f"300 MiB worked in, {(hint.current or 0) // MIB} → {done.after // MIB} MiB "
        f"({done.outcome}): {before:.3f} s of CPU a pass before, {after:.3f} after "
        f"({100 * (after - before) / before:+.1f} %)"
    )


def _passes(guest: Guest) -> float:
    """CPU seconds that a pass over its memory takes the guest's program."""
    first = _word(guest)
    time.sleep(20)
    last = _word(guest)
    return (last[0] - first[0]) / 100 / max(1, last[1] - first[1])


def _word(guest: Guest) -> tuple[int, int]:
    """Ticks of CPU time of the program, and passes that it has made."""
    text = guest.run("cat /proc/$(pidof load)/stat; cat /tmp/load.passes").split()
    return int(text[13]) + int(text[14]), int(text[-1])


def _cost() -> None:
    """CPU time of one sample, and what twenty guests once a second would take."""
    with Guest(_CONFIG) as guest, open_session(guest.name) as session:
        sample(session.guest, session.target)
        start = time.process_time()
        for _ in range(20):
            sample(session.guest, session.target)
        each = (time.process_time() - start) / 20
    print(f"a sample takes {1000 * each:.1f} ms: 20 guests a second {2000 * each:.0f} % of a core")


if __name__ == "__main__":
    main()
