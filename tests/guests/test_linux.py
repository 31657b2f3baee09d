"""Every table of a Linux guest against the guest's own word, on every guest of the matrix."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from virtintrospect.errors import FaultError, NoSuchTargetError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session

from . import compare
from .lab import kernels
from .lab.domain import Config
from .lab.guest import Guest


def test_transport_is_the_best_there_is(session: Session, guest: Guest) -> None:
    expected = "kvm-mmap" if guest.config.backing == "memfd" else "kvm-process"
    assert session.target.transport == expected


def test_info(linux: LinuxGuest, guest: Guest) -> None:
    snapshot = guest.snapshot()
    before = float(guest.get("/proc/uptime").split()[0])
    info = linux.info()
    after = float(guest.get("/proc/uptime").split()[0])
    assert info.os == "Linux"
    assert info.release.decode() == guest.release
    assert info.version == guest.get("/proc/sys/kernel/version").strip()
    assert info.hostname == guest.get("/proc/sys/kernel/hostname").strip()
    assert info.machine == guest.config.arch.encode()
    assert info.arguments == snapshot.file("/proc/cmdline").strip()
    assert info.boot_time is not None
    assert abs(info.boot_time - snapshot.boot_time) <= 1
    assert info.uptime_seconds is not None
    # While the guest slept, nobody brought its clock up to date.
    assert before - 5 < info.uptime_seconds < after + 1
    assert info.cpus == guest.config.vcpus
    assert info.page_mode == _page_mode(guest.config)
    assert info.build_id in guest.get("/sys/kernel/notes")


def _page_mode(config: Config) -> str:
    if config.arch == "aarch64":
        return {4: "aarch64-4k-48", 5: "aarch64-4k-52"}[config.levels]
    # Debian's 5.10 cloud kernel is built without 5-level paging.
    return "4-level" if config.kernel == "5.10" else f"{config.levels}-level"


#: Where kernels are linked to run: __START_KERNEL, and KIMAGE_VADDR of 6.5 and later.
LINKED = {"x86_64": 0xFFFF_FFFF_8100_0000, "i686": 0xC100_0000, "aarch64": 0xFFFF_8000_8000_0000}


def test_kernel_base_and_slide(linux: LinuxGuest, guest: Guest) -> None:
    info = linux.info()
    symbols = dict(_kallsyms(guest))
    assert info.kernel_base == symbols["_text"]
    assert info.kaslr_slide == info.kernel_base - LINKED[guest.config.arch]
    assert info.kaslr_slide >= 0  # KASLR is on, and the first place is one of those it may choose


def test_processes(linux: LinuxGuest, guest: Guest) -> None:
    before = guest.snapshot()
    ours = linux.processes()
    after = guest.snapshot()
    assert compare.processes(ours, before, after) == []
    assert linux.take_problems() == []


def test_threads(linux: LinuxGuest, guest: Guest) -> None:
    before = guest.snapshot()
    ours = linux.processes(threads=True)
    after = guest.snapshot()
    assert compare.threads(ours, before, after) == []
    assert linux.take_problems() == []


def test_modules(linux: LinuxGuest, guest: Guest) -> None:
    assert compare.modules(linux.modules(), guest.snapshot()) == []
    assert linux.take_problems() == []


def test_dmesg(linux: LinuxGuest, guest: Guest) -> None:
    before = guest.snapshot()
    assert len(before.log) > 200
    assert compare.log(linux.dmesg(), before) == []


def test_every_symbol_is_where_the_guest_has_it(linux: LinuxGuest, guest: Guest) -> None:
    theirs = sorted(_kallsyms(guest))
    ours = sorted((symbol.name, symbol.address) for symbol in linux.symbols)
    if kernels.KERNELS[guest.config.kernel].debug:  # its kallsyms has functions only
        assert len(theirs) > 40_000
        assert set(theirs) <= set(ours)
        return
    assert len(theirs) > 80_000
    assert ours == theirs


def _kallsyms(guest: Guest) -> Iterator[tuple[str, int]]:
    """The kernel's own symbols; those of modules have a fourth word, in brackets."""
    for line in guest.get("/proc/kallsyms").decode().splitlines():
        words = line.split()
        if len(words) == 3:
            yield words[2], int(words[0], 16)


def test_types_are_those_of_the_guest(linux: LinuxGuest, guest: Guest) -> None:
    from virtintrospect.symbols.btf import Btf

    if kernels.KERNELS[guest.config.kernel].debug:
        pytest.skip(f"{guest.release} has no BTF")
    theirs = Btf.parse(guest.get("/sys/kernel/btf/vmlinux"))
    for name in ("task_struct", "mm_struct", "dentry", "module", "sk_buff", "page"):
        assert linux.types.describe(name) == theirs.describe(name)


def test_types_of_a_module(linux: LinuxGuest, guest: Guest) -> None:
    from virtintrospect.symbols.btf import Btf

    blob = guest.execute("cat /sys/kernel/btf/bridge")
    if blob.status:
        pytest.skip(f"{guest.release} has no module BTF")  # since 5.11
    assert isinstance(linux.types, Btf)
    theirs = Btf.parse(blob.stdout, base=linux.types)
    ours = linux.module_types("bridge")
    assert ours.describe("net_bridge") == theirs.describe("net_bridge")
    assert ours.offsetof("net_bridge", "dev") == theirs.offsetof("net_bridge", "dev")
    assert ours.sizeof("list_head") == 16
    with pytest.raises(NoSuchTargetError):
        linux.module_types("no_such_module")


def test_banner_is_read_by_symbol(linux: LinuxGuest, guest: Guest) -> None:
    banner = linux.kernel.string(linux.symbols.address("linux_banner"), 4096)
    assert banner == guest.get("/proc/version")


def test_shortcuts_agree_with_the_page_tables(linux: LinuxGuest, guest: Guest) -> None:
    """Direct map and image need no walk; every page of them is walked here all the same."""
    walked = linux.kernel.with_root(linux.kernel.root)
    assert len(linux.kernel.linear) == 2
    for start, end, _ in linux.kernel.linear:
        ram_end = start + (guest.config.ram_mib << 20)
        pages = np.arange(start, min(end, ram_end), 4096, dtype=np.uint64)
        direct = linux.kernel.translate_many(pages)
        by_table = walked.translate_many(pages)
        mapped = by_table != np.uint64(0xFFFF_FFFF_FFFF_FFFF)
        assert mapped.mean() > 0.8  # freed init memory is unmapped
        assert (direct[mapped] == by_table[mapped]).all()


def test_single_and_bulk_walk_agree_on_user_memory(linux: LinuxGuest, guest: Guest) -> None:
    space = linux.process_space(1)
    ranges = [
        [int(number, 16) for number in line.split()[0].split(b"-")]
        for line in guest.get("/proc/1/maps").splitlines()
        if b"[vsyscall]" not in line
    ]
    pages = [page for start, end in ranges for page in range(start, end, 4096)][:4096]
    bulk = space.translate_many(np.array(pages, dtype=np.uint64)).tolist()
    present = 0
    for page, paddr in zip(pages, bulk, strict=True):
        walk = space.walk(page)
        assert paddr == (0xFFFF_FFFF_FFFF_FFFF if walk.paddr is None else walk.paddr)
        present += walk.paddr is not None
    assert present > 10


def test_user_memory_is_the_process_own(linux: LinuxGuest, guest: Guest) -> None:
    line = next(line for line in guest.get("/proc/1/maps").splitlines() if b"r-xp" in line)
    start = int(line.split(b"-")[0], 16)
    offset = int(line.split()[2], 16)
    executable = guest.get("/proc/1/exe")
    space = linux.process_space(1)
    data = space.read_available(start, 16 * 4096)
    assert data
    for vaddr, piece in data:
        where = offset + vaddr - start
        assert piece == executable[where : where + len(piece)].ljust(len(piece), b"\0")


def test_kernel_thread_has_no_memory(linux: LinuxGuest) -> None:
    with pytest.raises(NoSuchTargetError):
        linux.process_space(2)
    with pytest.raises(NoSuchTargetError):
        linux.process_space(4_000_000)


def test_unmapped_address_is_a_fault(linux: LinuxGuest) -> None:
    for vaddr in (0, 0x1000, 1 << 62, (1 << 64) - 4096):
        with pytest.raises(FaultError):
            linux.kernel.read(vaddr, 8)


def test_columns_follow_the_guest(linux: LinuxGuest, guest: Guest) -> None:
    """Repeated bulk reads see processes come and go."""
    first = set(linux.tasks.columns(["pid", "comm"])["pid"].tolist())
    said = guest.run(
        "for i in 1 2 3; do sleep 600 & echo $!;"
        "until grep -q '(sleep) S' /proc/$!/stat; do usleep 50000; done; done"
    )
    new = set(map(int, said.split()))
    second = linux.tasks.columns(["pid", "comm"])
    comms = (comm.split(b"\0")[0] for comm in second["comm"].tolist())
    names = dict(zip(second["pid"].tolist(), comms, strict=True))
    assert [names[pid] for pid in new - first] == [b"sleep"] * 3
    for pid in new:
        guest.run(f"kill -9 {pid}; while [ -e /proc/{pid} ]; do usleep 50000; done")
    third = set(linux.tasks.columns(["pid", "comm"])["pid"].tolist())
    assert not new & third


def test_live_guest_is_not_tainted_by_all_this(guest: Guest, linux: LinuxGuest) -> None:
    linux.info()
    time.sleep(0.1)
    assert "tainted" not in guest.log
    assert guest.domain.state()[0] == 1  # VIR_DOMAIN_RUNNING


def test_log_goes_on_where_it_was_left(guest: Guest, linux: LinuxGuest) -> None:
    """What a caller has seen is not given again, and nothing new is missed."""
    whole = linux.dmesg()
    for left in (0, 1, 2, 7, len(whole) - 1):
        after = whole[-1 - left].sequence
        seen = linux.dmesg(after)
        assert [record for record in seen if record in whole] == whole[len(whole) - left :]
    guest.run("echo '<6>lab: one more' > /dev/kmsg")
    texts = [record.text for record in linux.dmesg(whole[-1].sequence)]
    assert b"lab: one more" in texts
