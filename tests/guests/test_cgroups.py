"""Control groups against the guest's own files below /sys/fs/cgroup, on every guest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from virtintrospect.errors import NoSuchTargetError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import ControlGroup
from virtintrospect.session import open_session

from .lab.domain import Config
from .lab.guest import Guest
from .test_counters import paused

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

#: Readings until all rests between two of them: a page may come and go.
ATTEMPTS = 8

#: A tree with limits and load: busy but throttled, frozen, out of memory, and one that is gone
#: while its pages are still there.
WORKLOAD = """
cd /sys/fs/cgroup; test ! -e lab || exit 0
echo '+memory +cpu +pids' > cgroup.subtree_control
mkdir lab; cd lab; echo '+memory +cpu +pids' > cgroup.subtree_control
mkdir -p busy/inner quiet/deep/deeper tight gone
echo '20000 100000' > busy/cpu.max; echo 300 > busy/cpu.weight; echo 7 > busy/pids.max
echo '+memory' > busy/cgroup.subtree_control
echo 33M > quiet/memory.high; echo 40M > quiet/memory.max; echo 5M > quiet/memory.low
echo 4096 > quiet/memory.min; echo 1 > quiet/cpu.weight; echo 123 > quiet/pids.max
test ! -e quiet/memory.swap.max || echo 9M > quiet/memory.swap.max
echo 2M > tight/memory.max; test ! -e tight/memory.swap.max || echo 0 > tight/memory.swap.max
sh -c 'echo $$ > busy/inner/cgroup.procs; exec sh -c "while :; do :; done"' &
sh -c 'echo $$ > quiet/deep/deeper/cgroup.procs; dd if=/dev/zero of=/tmp/cgpages bs=64k count=40;
    touch /tmp/cgready; exec sleep 100000' &
sh -c 'echo $$ > tight/cgroup.procs; dd if=/dev/zero of=/tmp/cgtight bs=64k count=90'
rm /tmp/cgtight
sh -c 'echo $$ > gone/cgroup.procs; dd if=/dev/zero of=/tmp/cggone bs=64k count=20;
    timeout 1 sh -c "while :; do :; done"'
until rmdir gone; do usleep 100000; done
until test -e /tmp/cgready; do usleep 100000; done
echo 1 > quiet/deep/cgroup.freeze; until grep -q 'frozen 1' quiet/deep/deeper/cgroup.events
do usleep 100000; done
"""
TIDY = """
cd /sys/fs/cgroup/lab; echo 0 > quiet/deep/cgroup.freeze
kill -9 $(cat busy/inner/cgroup.procs quiet/deep/deeper/cgroup.procs)
"""
#: Every file of every group: ``./PATH/FILE:LINE``, in one process for all of them.
FILES = r"""
cd /sys/fs/cgroup; find . '(' -name cpu.stat -o -name cpu.weight -o -name cpu.max -o \
    -name cgroup.events -o -name cgroup.procs -o -name 'pids.[cm]*' -o -name memory.events \
    -o -name 'memory.[clmh]*' -o -name 'memory.swap.[cm]*' ')' -exec grep -H . {} +
"""
#: Files with one number, or ``max``.
_FILES = {
    "memory.current", "memory.max", "memory.high", "memory.low", "memory.min",
    "memory.swap.current", "memory.swap.max", "pids.current", "pids.max", "cpu.weight",
}  # fmt: skip

Row = dict[str, int]


@pytest.fixture(scope="module")
def loaded(guest: Guest) -> Iterator[Guest]:
    guest.run(WORKLOAD, 120)
    yield guest
    guest.run(TIDY, check=False)


def theirs(guest: Guest) -> dict[str, Row]:
    """What the files of each group say, by the names of our columns."""
    files: dict[str, list[str]] = {}
    # A group may go while its files are read: grep says so, and what it has is still true.
    said = guest.run(FILES, 60, check=False).decode("utf-8", "surrogateescape")
    for line in said.splitlines():
        name, _, value = line[1:].partition(":")
        files.setdefault(name, []).append(value)
    groups: dict[str, Row] = {}
    for name, lines in files.items():
        path, _, file = name.rpartition("/")
        groups.setdefault(path or "/", {"processes": 0}).update(_fields(file, lines))
    groups["/"]["processes"] -= 3  # the shell, find and grep that told us
    return groups


def _fields(file: str, lines: list[str]) -> Row:
    table = {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) == 2}
    if file == "cgroup.procs":
        return {"processes": len(lines)}
    if file == "cgroup.events":
        return table
    if file == "cpu.stat":
        return {name: value for name, value in table.items() if name in _CPU_STAT}
    if file == "memory.events":
        kinds = ("high", "max", "oom", "oom_kill")
        return {f"memory_events_{kind}": table[kind] for kind in kinds}
    if file == "cpu.max":
        quota, period = lines[0].split()
        found = {"cpu_period": int(period)}
        return found if quota == "max" else found | {"cpu_max": int(quota)}
    if file not in _FILES:
        return {}
    column = file.replace("memory.swap.", "swap_").replace(".", "_")
    return {} if lines == ["max"] else {column: int(lines[0])}


_CPU_STAT = {
    "usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec",
}  # fmt: skip


def ours(linux: LinuxGuest) -> dict[str, Row]:
    rows = linux.cgroups()
    assert [row.path for row in rows] == list(dict.fromkeys(row.path for row in rows))
    found = {}
    for row in rows:
        assert row.path is not None
        values = {name: getattr(row, name) for name in ControlGroup.__dataclass_fields__}
        for name in ("path", "hierarchy", "address"):
            del values[name]
        path = row.path.decode("utf-8", "surrogateescape")
        found[path] = {name: int(v) for name, v in values.items() if v is not None}
    return found


def differing(before: dict[str, Row], mine: dict[str, Row], after: dict[str, Row]) -> list[object]:
    """Values that do not lie between two readings of the guest, or are missing."""
    found: list[object] = []
    for path, row in before.items():
        low_high = {name: sorted((row[name], after[path][name])) for name in row}
        found += [
            (path, name, low, mine[path].get(name), high)
            for name, (low, high) in low_high.items()
            if not low <= mine[path].get(name, -1) <= high
        ]
    return found


def test_every_field_is_that_of_the_file(linux: LinuxGuest, loaded: Guest) -> None:
    for _ in range(ATTEMPTS):
        before = theirs(loaded)
        with paused(loaded):
            mine = ours(linux)
        after = theirs(loaded)
        assert set(mine) == set(before)
        bad = differing(before, mine, after)
        if not bad:
            break
    assert bad == []
    for path, row in mine.items():
        # What the guest has no file for is left out, but for what only we tell of the root.
        extra = set(row) - set(before[path]) - ({"populated"} if path == "/" else set())
        assert not extra, (path, extra)
    assert mine["/lab/busy"]["nr_throttled"] > 0
    assert mine["/lab/busy/inner"]["user_usec"] > 100_000
    assert mine["/lab/quiet/deep"]["frozen"] == 1
    assert mine["/lab/quiet"]["memory_current"] > 2 << 20
    assert mine["/lab/tight"]["memory_events_oom_kill"] > 0
    assert mine["/lab/tight"]["populated"] == 0
    assert "memory_max" not in mine["/lab"]
    assert linux.take_problems() == []


def test_time_that_the_guest_has_not_added_up_yet(linux: LinuxGuest, loaded: Guest) -> None:
    """Nobody reads cpu.stat; what the CPUs hold back is counted all the same."""
    where = "/sys/fs/cgroup/lab/idle"
    # Who ends the loop after a second is a process of that group, too, and ends last.
    rest = f"while grep -q . {where}/a/b/cgroup.procs; do usleep 50000; done; usleep 200000"
    loaded.run(
        f"mkdir -p {where}/a/b; sh -c 'echo $$ > {where}/a/b/cgroup.procs;"
        f' timeout 1 sh -c "while :; do :; done"\'; {rest}'
    )
    mine = ours(linux)
    after = theirs(loaded)
    for path in ("/lab/idle", "/lab/idle/a", "/lab/idle/a/b"):
        assert mine[path]["usage_usec"] > 300_000
        for name in ("usage_usec", "user_usec", "system_usec"):
            assert mine[path][name] == after[path][name]
    # Its pages keep the group alive without a directory; its time is still its parents'.
    loaded.run(
        f"sh -c 'echo $$ > {where}/a/b/cgroup.procs; echo x > /tmp/cgidle;"
        f' timeout 1 sh -c "while :; do :; done"\';'
        f" until rmdir {where}/a/b; do usleep 100000; done; usleep 200000"
    )
    mine, after = ours(linux), theirs(loaded)
    assert "/lab/idle/a/b" not in mine
    assert mine["/lab/idle/a"]["usage_usec"] == after["/lab/idle/a"]["usage_usec"]
    loaded.run(f"rm /tmp/cgidle; rmdir {where}/a {where}")


def their_pressure(guest: Guest) -> dict[tuple[str, str, str], tuple[float, ...]]:
    command = "cd /sys/fs/cgroup; find . -name '[cim]*.pressure' -exec grep -H . {} +"
    found = {}
    for line in guest.run(command, 60).decode("utf-8", "surrogateescape").splitlines():
        name, _, text = line[1:].partition(":")
        path, _, file = name.rpartition("/")
        kind, *words = text.split(" ")
        if file != "cgroup.pressure":
            values = tuple(float(word.partition("=")[2]) for word in words)
            found[path or "/", file.partition(".")[0], kind] = values
    return found


def test_pressure_of_each_group(linux: LinuxGuest, loaded: Guest) -> None:
    """As test_pressure_is_that_of_the_guest in test_counters.py, for every group."""
    for _ in range(ATTEMPTS):
        before = their_pressure(loaded)
        with paused(loaded):
            rows = linux.pressure(cgroups=True)
        after = their_pressure(loaded)
        mine = {
            ((r.cgroup or b"?").decode("utf-8", "surrogateescape"), r.resource, r.kind): (
                r.avg10, r.avg60, r.avg300, r.total,
            )
            for r in rows
        }  # fmt: skip
        assert set(mine) == set(before)
        bad = [
            (key, before[key], values, after[key])
            for key, values in mine.items()
            if not all(
                min(pair) <= value <= max(pair)
                for value, *pair in zip(values, before[key], after[key], strict=True)
            )
        ]
        if not bad:
            break
    assert bad == []
    assert mine["/lab/busy", "cpu", "some"][0] > 1.0
    assert mine["/lab/busy", "cpu", "some"][3] > mine["/lab/quiet", "cpu", "some"][3]
    assert mine["/lab/tight", "memory", "some"][3] > 0
    assert {row.cgroup for row in linux.pressure()} == {None}
    assert linux.take_problems() == []


def test_pressure_of_a_group_can_be_switched_off(linux: LinuxGuest, loaded: Guest) -> None:
    file = "/sys/fs/cgroup/lab/quiet/cgroup.pressure"
    if loaded.run(f"test -e {file}; echo $?").strip() != b"0":
        assert loaded.config.kernel == "5.10"
        return
    loaded.run(f"echo 0 > {file}")
    paths = {row.cgroup for row in linux.pressure(cgroups=True)}
    loaded.run(f"echo 1 > {file}")
    assert b"/lab/quiet" not in paths
    assert b"/lab/quiet/deep" in paths


@pytest.mark.usefixtures("loaded")
def test_path_chooses_a_part_of_the_tree(linux: LinuxGuest) -> None:
    paths = [row.path for row in linux.cgroups("/lab/quiet/")]
    assert paths == [b"/lab/quiet", b"/lab/quiet/deep", b"/lab/quiet/deep/deeper"]
    whole = {row.path: row.pids_current for row in linux.cgroups() if row.path in paths}
    assert whole == {row.path: row.pids_current for row in linux.cgroups(b"/lab/quiet")}
    assert len(linux.cgroups("/")) == len(linux.cgroups())
    for missing in ("/lab/qui", "lab"):
        with pytest.raises(NoSuchTargetError, match="no cgroup"):
            linux.cgroups(missing)


def test_hierarchies_of_version_1(boot: Callable[[Config], Guest]) -> None:
    """5.10 as systems of its time use it: controllers mounted one by one."""
    guest = boot(Config("5.10", cmdline="lab.workload=0"))
    guest.run(
        "umount /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup; cd /sys/fs/cgroup;"
        "for c in memory pids cpu,cpuacct blkio; do mkdir $c; mount -t cgroup -o $c none $c; done;"
        "mkdir systemd; mount -t cgroup -o none,name=systemd none systemd;"
        "mkdir -p memory/a/b cpu,cpuacct/c pids/d systemd/e;"
        "echo 20M > memory/a/memory.limit_in_bytes; echo 30000 > cpu,cpuacct/c/cpu.cfs_quota_us;"
        "echo 512 > cpu,cpuacct/c/cpu.shares; echo 9 > pids/d/pids.max;"
        "sh -c 'for f in memory/a/b cpu,cpuacct/c pids/d systemd/e; do"
        " echo $$ > /sys/fs/cgroup/$f/cgroup.procs; done;"
        " dd if=/dev/zero of=/tmp/v1 bs=64k count=40; touch /tmp/v1done;"
        " exec sleep 100000' & until grep -q '(sleep) S' /proc/$!/stat; do usleep 100000; done"
    )

    def theirs() -> tuple[int, int]:
        """Memory of a group, which the kernel gives back with a delay; and how many processes."""
        usage = int(guest.get("/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes"))
        return usage, len(guest.run("ls -d /proc/[0-9]*").split())

    before = theirs()
    with open_session(guest.name) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        rows = {(row.hierarchy, row.path): row for row in linux.cgroups()}
        assert linux.take_problems() == []
    usage, everybody = zip(before, theirs(), strict=True)
    assert [*dict.fromkeys(hierarchy for hierarchy, _ in rows)] == [
        b"unified", b"memory", b"pids", b"cpu,cpuacct", b"blkio", b"name=systemd",
    ]  # fmt: skip
    current = rows[b"memory", b"/a/b"].memory_current
    assert current is not None
    assert 2 << 20 < min(usage) <= current <= max(usage)
    assert rows[b"memory", b"/a"].memory_max == 20 << 20
    assert rows[b"memory", b"/a/b"].memory_max is None
    cpu = rows[b"cpu,cpuacct", b"/c"]
    assert (cpu.cpu_max, cpu.cpu_period, cpu.cpu_weight) == (30_000, 100_000, 50)
    pids = rows[b"pids", b"/d"]
    assert (pids.pids_current, pids.pids_max) == (1, 9)
    for key in ((b"memory", b"/a/b"), (b"cpu,cpuacct", b"/c"), (b"name=systemd", b"/e")):
        assert rows[key].processes == 1
        assert rows[key].populated
    assert rows[b"memory", b"/a"].processes == 0
    # Two of them, the shell and ls, were there for the answer only; workers come and go.
    assert min(everybody) - 2 - 3 <= rows[b"blkio", b"/"].processes <= max(everybody) - 2 + 3
