"""Who owns each page, against what the guest's kernel says: /proc/kpageflags, kpagecount."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from virtintrospect.cli.main import run
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model.pages import PAGE_KINDS, PageOwners

from .lab.guest import Guest

#: include/uapi/linux/kernel-page-flags.h
BUDDY, SLAB, ANON, NOPAGE, OFFLINE, PGTABLE, RESERVED = 10, 7, 12, 20, 23, 26, 32
SWAPBACKED, HUGE, COUNTED = 14, 17, ("anonymous", "file", "shared")

#: Pages of the guest's own agent that are in use whenever it looks, and not between.
OWN = 32


def proc(guest: Guest, name: str) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A number for each page frame, by the kernel's own word."""
    return np.frombuffer(guest.get(f"/proc/{name}"), dtype="<u8")


def looked_at(
    linux: LinuxGuest, guest: Guest, name: str
) -> tuple[PageOwners, np.ndarray[tuple[int], np.dtype[np.uint64]], slice]:
    """Our look, and the kernel's between two of which nothing has changed there."""
    before = proc(guest, name)
    owners = linux.page_owners()
    after = proc(guest, name)
    count = min(len(before), len(owners.kind))
    part = slice(0, count)
    same = np.where(before[part] == after[part], before[part], np.uint64(1) << np.uint64(63))
    assert (same == before[part]).mean() > 0.95
    return owners, same, part


def test_kinds(linux: LinuxGuest, guest: Guest) -> None:
    guest.run("dd if=/dev/zero of=/tmp/cached bs=1M count=3 2>/dev/null")
    pool = "/proc/sys/vm/nr_hugepages"  # armmp has none
    has_pool = bool(guest.run(f"ls {pool} 2>/dev/null", check=False))
    guest.run(f"echo 3 > {pool}", check=has_pool)
    reserved = int(guest.get(pool)) if has_pool else 0  # as many as fit between other things
    owners, theirs, part = looked_at(linux, guest, "kpageflags")
    guest.run(f"echo 0 > {pool}", check=has_pool)
    assert has_pool or linux.meminfo().hugepagesize is None
    assert owners.pages("hugetlb") * owners.page_size == reserved * (
        linux.meminfo().hugepagesize or 0
    )
    assert linux.take_problems() == []
    kind = owners.kind[part]
    known = theirs >> np.uint64(63) == 0

    def flag(number: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return (theirs >> np.uint64(number) & np.uint64(1)).astype(bool)

    wrong = {}
    for name, expected in {
        "free": flag(BUDDY),
        "slab": flag(SLAB),
        "anonymous": flag(ANON) & ~flag(HUGE) & ~flag(SLAB),  # slabs may look so (6.12)
        "hugetlb": flag(HUGE),
        "offline": flag(OFFLINE),
        "absent": flag(NOPAGE),
    }.items():
        ours = kind == PAGE_KINDS.index(name)
        different = known & (ours != expected)
        if name == "slab":  # large kmalloc()s, which have no flag of their own there
            different &= expected
        if different.sum() > OWN:
            wrong[name] = int(different.sum())
    assert wrong == {}
    tables = known & flag(PGTABLE)
    assert (kind[tables] == PAGE_KINDS.index("page_tables")).all()
    set_aside = {PAGE_KINDS.index(name) for name in ("reserved", "image", "memmap")}
    assert np.isin(kind[known & flag(RESERVED)], list(set_aside)).all()
    shared = kind == PAGE_KINDS.index("shared")
    assert flag(SWAPBACKED)[shared & known].all()


def test_mappings(linux: LinuxGuest, guest: Guest) -> None:
    """How often each page is mapped, page by page."""
    owners, theirs, part = looked_at(linux, guest, "kpagecount")
    mine = owners.of(*COUNTED)[part] & (theirs >> np.uint64(63) == 0)
    assert mine.sum() * owners.page_size > 12 << 20
    different = mine & (owners.mappings[part] != theirs)
    assert different.sum() <= OWN, np.flatnonzero(different)[:10]


@pytest.mark.once_a_kernel
def test_totals_are_those_of_meminfo(linux: LinuxGuest) -> None:
    before, owners, after = linux.meminfo(), linux.page_owners(), linux.meminfo()

    def size(*kinds: str) -> int:
        return sum(owners.pages(kind) for kind in kinds) * owners.page_size

    batch = 64 << 12  # what a CPU holds back of a counter
    for ours, names in (
        (size("free"), "memory_free"),
        (size("anonymous"), "anon_pages"),
        (size("file", "shared"), "cached buffers"),
        (size("shared"), "shmem"),
        (size("stack"), "kernel_stack"),
    ):
        low, high = sorted(
            sum(getattr(info, name) or 0 for name in names.split()) for info in (before, after)
        )
        assert low > 0
        assert low - batch * 4 <= ours <= high + batch * 4, names
    # Top tables are counted since 6.14 only; large kmalloc()s as slab, but not marked before 6.14.
    low, high = sorted((before.page_tables or 0, after.page_tables or 0))
    assert low > 0
    assert low - batch <= size("page_tables") <= high + (4 << 20)
    low, high = sorted((before.slab or 0, after.slab or 0))
    assert low - (8 << 20) <= size("slab") <= high + batch


def settled(guest: Guest, pid: int) -> dict[str, int]:
    """smaps_rollup of a process, in bytes, as soon as it does not grow any more."""
    before: dict[str, int] = {}
    for _ in range(240):
        lines = guest.get(f"/proc/{pid}/smaps_rollup").decode().splitlines()[1:]
        kib = (line.split() for line in lines if line.endswith("kB"))
        figures = {words[0].rstrip(":"): int(words[1]) << 10 for words in kib}
        if figures == before and figures["Anonymous"] > 8 << 20:
            return figures
        before = figures
        guest.run("usleep 250000")
    pytest.fail(f"it grows and grows: {before}")


@pytest.mark.once_a_kernel
def test_whose_pages(linux: LinuxGuest, guest: Guest) -> None:
    """A process that has written 8 MiB owns them, and its page tables and stack."""
    pid = int(guest.run("cd /tmp; tail -c 8m /dev/zero & echo $!").split()[0])
    figures = settled(guest, pid)
    owners = linux.page_owners()
    mine = next(each for each in owners.processes if each.pid == pid)
    assert mine.name == b"tail"
    assert mine.anonymous == figures["Anonymous"]
    # To the kernel a page that it maps twice is no private one.
    private = figures["Private_Clean"] + figures["Private_Dirty"]
    assert 0 <= mine.alone - private <= 4 * owners.page_size
    rows = owners.pid == pid
    assert {PAGE_KINDS[kind] for kind in np.unique(owners.kind[rows])} >= {
        "anonymous", "page_tables", "stack",
    }  # fmt: skip
    # What it has alone is its own; a page that it shares may stand for another process.
    assert rows[owners.of("anonymous")].sum() * owners.page_size >= mine.anonymous - (1 << 20)
    guest.run(f"kill {pid}", check=False)


@pytest.mark.once_a_kernel
def test_command(guest: Guest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png, svg = tmp_path / "map.png", tmp_path / "map.svg"
    assert run(["-o", "json", "map", guest.name, "--plot", str(png)]) == 0
    rows = {row["owner"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["free"]["resident"] <= rows["free"]["size"]
    assert abs(sum(row["share"] for row in rows.values()) - 1) < 1e-6
    assert png.read_bytes().startswith(b"\x89PNG")
    assert run(["-o", "json", "map", guest.name, "--ranges", "--plot", str(svg)]) == 0
    runs = json.loads(capsys.readouterr().out)
    whole = sum(int(r["end"], 16) - int(r["start"], 16) for r in runs)
    assert abs(whole - sum(row["size"] for row in rows.values())) < 1 << 20
    assert "free" in "".join(ET.fromstring(svg.read_bytes()).itertext())
    assert run(["-o", "json", "map", guest.name, "--processes"]) == 0
    assert {"pid": 2, "name": "kthreadd"}.items() <= json.loads(capsys.readouterr().out)[1].items()
    assert run(["map", guest.name, "--plot", "map.pdf"]) == 2
    assert run(["map", guest.name, "--ranges", "--processes"]) == 2
