"""Kernels of other architectures besides the one of the matrix: what matters most, and stacks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from virtintrospect.errors import NotFoundError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import open_session

from . import compare, test_cgroups, test_counters
from .lab.domain import Config
from .lab.guest import Guest
from .test_cgroups import test_every_field_is_that_of_the_file as compare_groups
from .test_counters import agree
from .test_files import test_maps_of_everybody as compare_areas
from .test_map import test_kinds as compare_pages
from .test_map import test_mappings as compare_mappings
from .test_slabs import test_every_cache as compare_caches
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

PAGE_MODES = {
    LARGER: "aarch64-16k-52",
    NEWEST: "aarch64-4k-52",
    FUNCTIONS: "aarch64-4k-48",
    RISCV: "sv57",
}


def test_what_is_counted_in_pages(boot: Callable[[Config], Guest]) -> None:
    """Every line and field that the guest has in its files, and the owner of every page."""
    guest = boot(LARGER)
    # A huge page has 32 MiB.
    guest.run(test_counters.WORKLOAD.replace("echo 6 >", "echo 2 >"), 90)

    def meminfo() -> dict[str, int]:
        found = test_counters.meminfo(guest)
        del found["zswap"]  # which only zswap's own allocator knows until 6.17
        return found

    with open_session(guest.name) as session:
        ours = session.guest
        assert isinstance(ours, LinuxGuest)
        assert ours.page_size == guest.snapshot().page_size == 16 << 10
        slack = 4 * test_counters.SLACK
        mine = agree(guest, meminfo, lambda: test_counters.our_meminfo(ours), slack)
        assert mine["hugetlb"] == 64 << 20
        assert 0 < mine["swap_free"] < mine["swap_total"]
        for settings in (
            "echo 200000 > overcommit_kbytes; echo 5000000 > dirty_background_bytes",
            "echo 9000001 > dirty_bytes",
            "echo 0 > overcommit_kbytes; echo 30 > dirty_ratio; echo 40 > dirty_background_ratio",
        ):
            guest.run(f"cd /proc/sys/vm; {settings}")
            agree(guest, meminfo, lambda: test_counters.our_meminfo(ours), slack)
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


@pytest.mark.parametrize("config", PAGE_MODES, ids=lambda config: config.id)
def test_the_tables_that_matter_most(boot: Callable[[Config], Guest], config: Config) -> None:
    guest = boot(config)
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
        assert info.page_mode == PAGE_MODES[config]
        if not ours.functions_only:
            assert info.arguments == before.file("/proc/cmdline").strip()
        problems = [problem.what for problem in ours.take_problems()]
        assert all("command line" in what and ours.functions_only for what in problems)
        compare_stacks(ours, guest)


def test_what_a_kernel_does_not_tell_is_said(boot: Callable[[Config], Guest]) -> None:
    """It has eBPF, and we cannot know: nothing is called missing that is only not found."""
    with open_session(boot(FUNCTIONS).name) as session:
        assert session.guest.slabs()
        assert session.guest.interfaces()
        with pytest.raises(NotFoundError, match="symbols of its functions"):
            session.guest.bpf()
