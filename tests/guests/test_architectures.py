"""Kernels of other architectures besides the one of the matrix: what matters most, and stacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import support
from virtintrospect.errors import NotFoundError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.stack import StackReader
from virtintrospect.session import open_session

from . import compare, test_cgroups, test_counters
from .lab.domain import Config
from .lab.guest import Guest
from .test_cgroups import test_every_field_is_that_of_the_file as compare_groups
from .test_counters import SLACK, agree, meminfo, our_meminfo
from .test_files import test_maps_of_everybody as compare_areas
from .test_map import test_kinds as compare_pages
from .test_map import test_mappings as compare_mappings
from .test_slabs import test_every_cache as compare_caches
from .test_stacks import tasks
from .test_stacks import test_every_stack_is_that_of_the_guest as compare_stacks

#: The newest kernel, with 52 bits of address, signed return addresses and private memory.
NEWEST = Config(
    "7.2-arm64", levels=5, backing="anonymous", pti=True, machine="virt", arch="aarch64"
)
#: A kernel with symbols of functions only (no CONFIG_KALLSYMS_ALL).
FUNCTIONS = Config("6.1-arm64", pti=False, machine="virt", arch="aarch64")
RISCV = Config("6.12-riscv64", levels=5, pti=False, machine="virt", arch="riscv64")
#: Pages of 16 KiB.
LARGER = Config("6.12-arm64-16k", levels=5, pti=False, machine="virt", arch="aarch64")
#: Symbols and types come from its debug package.
ARM = Config("6.12-armmp-lpae", levels=3, pti=False, machine="virt", arch="armv7l")
ARM_SHORT = Config(
    "6.12-armmp", levels=2, backing="anonymous", pti=False, machine="virt", arch="armv7l"
)

PAGE_MODES = {
    LARGER: "aarch64-16k-52",
    NEWEST: "aarch64-4k-52",
    FUNCTIONS: "aarch64-4k-48",
    RISCV: "sv57",
    ARM: "arm-lpae",
    ARM_SHORT: "arm-short",
}


def test_what_is_counted_in_pages(boot: Callable[[Config], Guest]) -> None:
    """Every line and field that the guest has in its files, and the owner of every page."""
    guest = boot(LARGER)
    # A huge page has 32 MiB.
    guest.run(test_counters.WORKLOAD.replace("echo 6 >", "echo 2 >"), 90)

    def lines() -> dict[str, int]:
        return test_counters.meminfo(guest)

    with open_session(guest.name) as session:
        ours = session.guest
        assert isinstance(ours, LinuxGuest)
        assert ours.page_size == guest.snapshot().page_size == 16 << 10
        slack = 4 * test_counters.SLACK
        mine = agree(guest, lines, lambda: test_counters.our_meminfo(ours), slack)
        assert mine["hugetlb"] == 64 << 20
        assert 0 < mine["swap_free"] < mine["swap_total"]
        for settings in (
            "echo 200000 > overcommit_kbytes; echo 5000000 > dirty_background_bytes",
            "echo 9000001 > dirty_bytes",
            "echo 0 > overcommit_kbytes; echo 30 > dirty_ratio; echo 40 > dirty_background_ratio",
        ):
            guest.run(f"cd /proc/sys/vm; {settings}")
            agree(guest, lines, lambda: test_counters.our_meminfo(ours), slack)
            agree(
                guest,
                lambda: test_counters.vmstat(guest),
                lambda: test_counters.our_vmstat(ours),
                test_counters.VMSTAT_SLACK,
            )
        compare_caches(ours, guest)
        compare_areas(ours, guest)
        guest.run(test_cgroups.WORKLOAD, 120)
        compare_groups(ours, guest)
        guest.run(test_cgroups.TIDY, check=False)
        compare_pages(ours, guest)
        compare_mappings(ours, guest)
        assert ours.take_problems() == []


#: The same kernel with fewer levels of page tables, by a kernel parameter.
FEWER_LEVELS = {replace(RISCV, levels=4): "sv48", replace(RISCV, levels=3): "sv39"}


@pytest.mark.parametrize("config", FEWER_LEVELS, ids=lambda config: config.id)
def test_fewer_levels(boot: Callable[[Config], Guest], config: Config) -> None:
    guest = boot(config)
    check_tables(guest, config, FEWER_LEVELS[config])
    with open_session(guest.name) as session:
        ours = session.guest
        assert isinstance(ours, LinuxGuest)
        compare_mappings(ours, guest)  # through the page tables of every process


@pytest.mark.parametrize("config", PAGE_MODES, ids=lambda config: config.id)
def test_the_tables_that_matter_most(
    boot: Callable[[Config], Guest], config: Config, tmp_path: Path
) -> None:
    """Against the guest's own word; and every command, against docs/support.md."""
    guest = boot(config)
    check_tables(guest, config, PAGE_MODES[config])
    support.check(f"Linux {config.kernel}", guest.name, tmp_path)


def check_tables(guest: Guest, config: Config, page_mode: str) -> None:
    with open_session(guest.name) as session:
        ours = session.guest
        assert isinstance(ours, LinuxGuest)
        before = guest.snapshot()
        processes, threads = ours.processes(), ours.processes(threads=True)
        after = guest.snapshot()
        assert compare.processes(processes, before, after) == []
        assert compare.threads(threads, before, after) == []
        assert compare.modules(ours.modules(), before) == []
        assert compare.log(ours.dmesg(), before) == []
        assert {m.path for m in ours.mounts()} >= {b"/", b"/proc", b"/sys/fs/cgroup"}
        assert {area.path for area in ours.maps(1)} >= {b"/init", b"[heap]", b"[stack]"}
        info = ours.info()
        assert (info.machine, info.release) == (config.arch.encode(), guest.release.encode())
        assert info.page_mode == page_mode
        if not ours.functions_only:
            assert info.arguments == before.file("/proc/cmdline").strip()
        problems = [problem.what for problem in ours.take_problems()]
        assert all("command line" in what and ours.functions_only for what in problems)
        if config.arch != "armv7l":
            compare_stacks(ours, guest)
            return
        agree(guest, lambda: meminfo(guest), lambda: our_meminfo(ours), SLACK)
        # /proc/PID/stack is empty there, but for the task that reads it.
        compare_waits(ours, guest)
        compare_pages(ours, guest)
        compare_mappings(ours, guest)
        compare_log_of_stacks(ours, guest)


def test_registers_of_a_core_of_arm(boot: Callable[[Config], Guest], tmp_path: Path) -> None:
    """Its CPU was at something, and what was that leads to a program or to the first task."""
    guest, path = boot(ARM), tmp_path / "core"
    tmp_path.chmod(0o755)
    guest.domain.coreDumpWithFormat(str(path), 0, 16)  # VIR_DUMP_MEMORY_ONLY
    with open_session(str(path)) as session:
        frames = session.guest.cpu_stacks()
        assert not session.guest.take_problems()
        assert {p.name for p in session.guest.processes()} >= {b"init", b"kthreadd", b"agent"}
    path.unlink()
    assert frames[0].found_by in ("registers", "user")
    assert all(frame.confidence == 1.0 for frame in frames)
    ends = frames[-1].found_by, frames[-1].function
    assert ends[0] == "user" or ends[1] in ("start_kernel", "ret_from_fork")


def compare_waits(ours: LinuxGuest, guest: Guest) -> None:
    """Where tasks wait, and where in their programs, by /proc/PID/wchan and syscall."""
    guest.run("sleep 1")
    before = tasks(guest)
    reader = StackReader(ours, Budget())
    addresses = [process.address for process in ours.processes(threads=True)]
    found = {item.row["tid"]: item for item in reader.stacks(addresses)}
    after = tasks(guest)
    resting = {tid for tid in before if tid in after and before[tid].lines == after[tid].lines}
    waiting = {tid for tid in resting if before[tid].lines["wchan"] not in ([], ["0"])}
    assert len(waiting) > 50
    for tid in waiting:
        item = found[tid]
        assert not item.broken
        assert all(row.confidence == 1.0 for row in reader.rows(item))
        assert [reader.wait_channel(item)] == before[tid].lines["wchan"], tid
    users = {tid: before[tid].user for tid in waiting if before[tid].user}
    assert len(users) > 30
    last = {tid: found[tid].frames[-1] for tid in users}
    assert {frame.found_by for frame in last.values()} == {"user"}
    assert {tid: (frame.sp, frame.address) for tid, frame in last.items()} == users


def compare_log_of_stacks(ours: LinuxGuest, guest: Guest) -> None:
    """Every frame of what sleeps, by what the kernel itself logs of all tasks (SysRq t)."""
    guest.run("sleep 1; echo t > /proc/sysrq-trigger")
    reader = StackReader(ours, Budget())
    tasks = ours.processes(threads=True)
    found = {item.row["tid"]: item for item in reader.stacks([task.address for task in tasks])}
    logged = dict(stacks_in(guest.run("dmesg", 60).decode(errors="replace")))
    # The agent has answered meanwhile, and workers may have run.
    moving = {task.tid for task in tasks if re.match(rb"agent|kworker|rcu|ksoftirq", task.name)}
    same = {tid: frames for tid, frames in logged.items() if tid in found and tid not in moving}
    assert len(same) > 80
    for tid, frames in same.items():
        rows = [row for row in reader.rows(found[tid]) if row.found_by != "user"]
        assert [str(row.symbol).split(" ")[0] for row in rows[1:]] == frames, tid


def stacks_in(log: str) -> Iterator[tuple[int, list[str]]]:
    """Tasks and where each of their frames returns to; a name may be cut into lines."""
    for part in re.split(r"\] task:", log)[1:]:
        head, _, frames = part.partition("Call trace:")
        number = re.search(r" pid:(\d+) +tgid:\d+ +ppid:\d+ ", head)
        if number:
            yield int(number[1]), re.findall(r"\]  \S+ from (\S+)", frames)


def test_what_a_kernel_does_not_tell_is_said(boot: Callable[[Config], Guest]) -> None:
    """It has eBPF, and we cannot know: nothing is called missing that is only not found."""
    with open_session(boot(FUNCTIONS).name) as session:
        assert session.guest.slabs()
        assert session.guest.interfaces()
        with pytest.raises(NotFoundError, match="symbols of its functions"):
            session.guest.bpf()
