"""What the host itself says of a guest's QEMU, and switches of its memory management."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MIB = 1 << 20
PAGE = 4096
MM = Path("/sys/kernel/mm")
#: Seconds within which the host must have done what it was told to.
PATIENCE = 300.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.5)


@contextlib.contextmanager
def switched(**settings: str) -> Iterator[None]:
    """Files of /sys/kernel/mm with other contents: ``ksm__run="1"``."""
    paths = {MM / name.replace("__", "/"): value for name, value in settings.items()}
    before = {path: _chosen(path.read_text()) for path in paths}
    try:
        for path, value in paths.items():
            path.write_text(value)
        yield
    finally:
        for path, value in before.items():
            path.write_text(value)


@contextlib.contextmanager
def swap(mib: int) -> Iterator[None]:
    """The host with so much swap, in a file of a ramfs.

    A tmpfs would be swapped itself, by what waits for it.
    """
    folder = Path("/run/swap")
    folder.mkdir()
    _run("mount", "-t", "ramfs", "ramfs", str(folder))
    (folder / "area").touch()
    os.truncate(folder / "area", mib << 20)
    device = _run("losetup", "--show", "-f", str(folder / "area")).strip()
    try:
        _run("mkswap", device)
        _run("swapon", device)
        yield
        _run("swapoff", device)
    finally:
        _run("losetup", "-d", device)
        _run("umount", "-l", str(folder))
        folder.rmdir()


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout


def _chosen(text: str) -> str:
    """Of ``always [madvise] never`` what is chosen, of a number the number."""
    found = re.search(r"\[([^]]+)\]", text)
    return found[1] if found else text.strip()


def rollup(pid: int, name: str) -> int:
    """A line of smaps_rollup; bytes."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), name)


def status(pid: int, name: str) -> int:
    """A line of /proc/PID/status that is an amount of memory; bytes."""
    return _kib(Path(f"/proc/{pid}/status"), name)


def _kib(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path} has no {name}"
    return int(found[1]) << 10


def group(pid: int) -> Path:
    """The control group that holds a QEMU and its threads: its memory is counted there."""
    place = _group(Path(f"/proc/{pid}"))
    while not (place / "memory.numa_stat").exists():
        place = place.parent
    return place


def vcpu_group(pid: int, number: int) -> Path:
    """The control group of one vCPU's thread."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text() == f"CPU {number}/KVM\n":
            return _group(task)
    raise AssertionError(f"no thread of vCPU {number}")


def _group(process: Path) -> Path:
    (line,) = (process / "cgroup").read_text().splitlines()
    return Path("/sys/fs/cgroup") / line.split("::")[1].lstrip("/")


def on_nodes(pid: int) -> dict[int, int]:
    """Bytes of anonymous memory on each NUMA node, by the control group's count."""
    for line in (group(pid) / "memory.numa_stat").read_text().splitlines():
        if line.startswith("anon "):
            pairs = re.findall(r"N(\d+)=(\d+)", line)
            return {int(node): int(size) for node, size in pairs}
    raise AssertionError("memory.numa_stat has no line anon")


def waited(pid: int) -> float:
    """Milliseconds that all threads of a QEMU waited for a CPU."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e6
