"""What a host tells of a QEMU: control groups of both versions, placement, its own figures."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, cast

import pytest
from virtintrospect_kvm import limits, placement
from virtintrospect_kvm.placement import Placement, parse_nodes, parse_rollup

from virtintrospect.insight.hostfigures import host_figures

MIB = 1 << 20


class Files:
    """Files of a /proc/PID."""

    def __init__(self, **files: bytes) -> None:
        self.files = {name.replace("__", "/"): text for name, text in files.items()}
        self.read: list[str] = []

    def read_file(self, name: str, limit: int) -> bytes:
        self.read.append(name)
        if name not in self.files:
            raise OSError(errno.ENOENT, "no such file")
        return self.files[name][:limit]


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(limits, "_MOUNTS", tmp_path / "mountinfo")
    return tmp_path


def look(**files: bytes) -> dict[str, Any]:
    threads = [int(name.split("__")[1]) for name in files if name.startswith("task__")]
    return limits.limits(cast(Any, Files(**files)), threads)


def test_limits_of_version_two(mounts: Path) -> None:
    """As libvirt makes them: the machine, and a group for each vCPU."""
    (mounts / "mountinfo").write_text(f"30 23 0:26 / {mounts}/cg rw,nosuid - cgroup2 cgroup2 rw\n")
    machine = mounts / "cg/machine.slice/web.scope"
    stat = "usage_usec 5\nnr_periods 9\nnr_throttled 3\nthrottled_usec 2000000"
    group(mounts / "cg/machine.slice", memory_max="max", memory_current="9", cpu_max="max 100000")
    group(machine, memory_max="1073741824", memory_current="1000", cpu_max="150000 100000",
          cpu_stat=stat)  # fmt: skip
    for number in range(2):
        group(machine / f"libvirt/vcpu{number}", cpu_max="50000 100000", cpu_stat=stat)
    line = "0::/machine.slice/web.scope/libvirt/"
    found = look(
        cgroup=f"{line}emulator\n".encode(),
        task__7__cgroup=f"{line}vcpu0\n".encode(), task__8__cgroup=f"{line}vcpu1\n".encode(),
    )  # fmt: skip
    assert found == {
        "memory_max": 1 << 30, "memory_group": "/machine.slice/web.scope", "memory_used": 1000,
        "cpus_max": 1.0, "cpu_group": "/machine.slice/web.scope/libvirt/vcpu0",
        "throttled": 9, "throttled_ms": 6000,
    }  # fmt: skip


def test_limits_of_version_one(mounts: Path) -> None:
    (mounts / "mountinfo").write_text(
        f"32 31 0:29 / {mounts}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"35 31 0:32 /box {mounts}/memory rw - cgroup cgroup rw,memory\n"
        f"41 31 0:38 / {mounts}/unified rw - cgroup2 cgroup2 rw\n"
    )
    group(mounts / "cpu/web", cpu_cfs_quota_us="20000", cpu_cfs_period_us="100000",
          cpu_stat="nr_throttled 7\nthrottled_time 3000000000")  # fmt: skip
    group(mounts / "memory", memory_limit_in_bytes=str(1 << 62), memory_usage_in_bytes="5")
    group(mounts / "memory/web", memory_limit_in_bytes=str(MIB), memory_usage_in_bytes="6")
    lines = b"4:memory:/box/web\n1:cpu,cpuacct:/web\n0::/\n"
    assert look(cgroup=lines, task__7__cgroup=lines) == {
        "memory_max": MIB, "memory_group": "/web", "memory_used": 6,
        "cpus_max": 0.2, "cpu_group": "/web", "throttled": 7, "throttled_ms": 3000,
    }  # fmt: skip


def test_limits_below_a_folder_of_an_odd_name(mounts: Path) -> None:
    """mountinfo escapes mount points and roots, /proc/PID/cgroup does not."""
    place = mounts / "a b\tc\nd\\040"
    escaped = f"{mounts}/a\\040b\\011c\\012d\\134040"
    (mounts / "mountinfo").write_text(f"1 2 0:1 /my\\040box {escaped} rw - cgroup2 cgroup2 rw\n")
    group(place / "web", memory_max=str(MIB), memory_current="7")
    assert look(cgroup=b"0::/my box/web\n") == {
        "memory_max": MIB, "memory_group": "/web", "memory_used": 7,
    }  # fmt: skip


@pytest.mark.parametrize("lines", [b"", b"0::/../out\n", b"x\n0\n:::\n", b"0::/a/b\n4:memory:\n"])
def test_no_limits(mounts: Path, lines: bytes) -> None:
    (mounts / "mountinfo").write_text(f"1 2 0:1 / {mounts} rw - cgroup2 cgroup2 rw\nodd\n - \n")
    group(mounts / "a", cpu_max="max 100000", memory_max="max", memory_current="5")
    assert look(cgroup=lines, task__1__cgroup=lines) == {}
    (mounts / "mountinfo").unlink()
    assert look(cgroup=lines, task__1__cgroup=lines) == {}


ROLLUP = b"""7ff0-7fff ---p 00000000 00:00 0    [rollup]
Rss:             4096 kB
AnonHugePages:   2048 kB
ShmemPmdMapped:     4 kB
FilePmdMapped:      4 kB
Shared_Hugetlb:     8 kB
Private_Hugetlb:    8 kB
Swap:             100 kB
Odd: kB
"""
NUMA = b"""7f00 default anon=10 dirty=10 active=3 N0=7 N1=3 kernelpagesize_kB=4
7f01 default file=/memfd huge dirty=2 N1=2 kernelpagesize_kB=2048
7f02 default
"""


def test_how_memory_is_placed() -> None:
    assert parse_rollup(ROLLUP) == {
        "resident": 4 * MIB, "anon_huge": 2 * MIB, "shmem_huge": 8192, "hugetlb": 16384,
        "swapped": 102_400,
    }  # fmt: skip
    assert parse_nodes(NUMA) == [[0, 7 * 4096], [1, 3 * 4096 + 4 * MIB]]
    assert parse_nodes(b"") == []


def test_placement_is_looked_up_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel walks all page tables for it."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(placement, "_several_nodes", lambda: True)
    files = Files(smaps_rollup=ROLLUP, ksm_merging_pages=b"3\n", numa_maps=NUMA)
    where = Placement(cast(Any, files))
    first = where.look()
    assert first["merged"] == 3 * 4096
    assert first["nodes"] == [[0, 7 * 4096], [1, 3 * 4096 + 4 * MIB]]
    files.files.clear()
    now[0] += 9
    assert where.look() == first
    assert files.read == ["smaps_rollup", "ksm_merging_pages", "numa_maps"]
    now[0] += 2
    assert where.look() == {}  # not ours to read any more


def test_figures_of_a_host(tmp_path: Path) -> None:
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal:  100 kB\nMemAvailable:   50 kB\nHugePages_Free:   3\nOdd\n"
    )
    (tmp_path / "proc/pressure/cpu").write_text("some avg10=1.00 total=77\nfull avg10=0 total=x\n")
    mm = tmp_path / "sys/kernel/mm"
    (mm / "ksm").mkdir(parents=True)
    (mm / "ksm/run").write_text("1\n")
    (mm / "ksm/pages_sharing").write_text("2\n")
    (mm / "transparent_hugepage").mkdir()
    (mm / "transparent_hugepage/enabled").write_text("always [madvise] never\n")
    nodes = tmp_path / "sys/devices/system/node"
    for number in (0, 2):
        (nodes / f"node{number}").mkdir(parents=True)
        (nodes / f"node{number}/meminfo").write_text(
            f"Node {number} MemTotal:  8 kB\nNode {number} MemFree:   {number} kB\n"
        )
    (nodes / "has_memory").write_text("0,2\n")
    found = host_figures(tmp_path)
    assert found.pop("cpus") > 0
    assert found == {
        "memory_total": 102_400, "memory_available": 51_200, "hugepages_free": 3,
        "pressure": {"cpu_some": {"total": 77}}, "ksm": {"run": 1, "pages_sharing": 8192},
        "huge": "madvise", "nodes": 2, "node_memory": [[0, 8192, 0], [2, 8192, 2048]],
    }  # fmt: skip
    assert host_figures(tmp_path / "none").keys() == {"cpus"}
