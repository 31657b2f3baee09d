"""A real guest turned hostile: its RAM is copied, bent, and looked at.

Random lies (``tests/fuzz``; ``make fuzz`` for a long run) and aimed ones, each with a bound on
time and memory.
"""

from __future__ import annotations

import resource
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.exercise import SECONDS, Fuzzer, steps
from tests.fuzz.image import CONFIG, copy_ram
from tests.fuzz.memory import EXTRA, Image, ImageTarget
from tests.fuzz.mutate import seeds
from virtintrospect.errors import CorruptDataError, VirtIntrospectError
from virtintrospect.guests import identify
from virtintrospect.guests.linux import maps
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.maple import walk_maple
from virtintrospect.guests.linux.process import find_user_process
from virtintrospect.symbols.store import Store

from .conftest import Lab

#: Seconds of random lies in a normal test run.
RANDOM_SECONDS = 12.0
#: Seconds of CPU time for a table of a guest that lies on a large scale.
PATIENCE = 30.0
ROOM = 512 << 20


@pytest.fixture(scope="module")
def ram(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("hostile") / "ram"
    copy_ram(lab.guest(CONFIG), path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("profiles"))


class Liar:
    """A guest with room to lie in, and its own words overwritten."""

    def __init__(self, ram: Path, store: Store) -> None:
        self.memory = Image(ram, extra=ROOM)
        guest = identify(ImageTarget(self.memory, live=True), store)
        assert isinstance(guest, LinuxGuest)
        self.guest = guest
        #: The extra memory, as the kernel sees it.
        self.room = guest.kernel.linear[0].start + EXTRA
        self.tasks = guest.tasks.addresses()

    def write(self, vaddr: int, data: bytes) -> None:
        self.memory.write(self.guest.kernel.translate(vaddr), data)

    def set(self, name: str, member: str, address: int, value: int) -> None:
        field = self.guest.types.resolve(name, member)[-1]
        self.write(address + field.offset, value.to_bytes(field.size, "little"))

    def pointers(self, member: str) -> list[int]:
        layout = self.guest.layout("task_struct", {"it": member})
        column = layout.lists(self.guest.kernel, self.tasks, [])["it"]
        return sorted({address for address in column if address})

    def long_cycle(self, length: int) -> int:
        """A ``list_head`` that leads into a cycle of many entries, none of them itself."""
        stride = 64
        first = self.room + stride
        nexts = [first + stride * (number + 1) for number in range(length - 1)] + [first]
        block = b"".join(struct.pack("<QQ48x", following, first) for following in nexts)
        self.write(first, block)
        self.write(self.room, struct.pack("<QQ", first, first))
        return self.room


@pytest.fixture
def liar(ram: Path, store: Store) -> Liar:
    return Liar(ram, store)


def quickly(run: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Run within a time, whatever else the machine does, and within 1 GiB of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    run()
    assert time.process_time() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


def everything(guest: LinuxGuest) -> None:
    for _, step in steps(guest):
        try:
            step()
        except VirtIntrospectError:
            continue


def whats(guest: LinuxGuest) -> set[str]:
    return {problem.what for problem in guest.take_problems()}


def test_random_lies(ram: Path, tmp_path: Path) -> None:
    fuzzer = Fuzzer(ram, tmp_path)
    end = time.monotonic() + RANDOM_SECONDS
    for seed in seeds(1):
        fuzzer.run(seed)
        if time.monotonic() > end:
            break
    assert max(seconds for name, (seconds, _) in fuzzer.slowest.items() if name != "identify") < (
        SECONDS
    )


def test_task_list_with_a_long_cycle(liar: Liar) -> None:
    guest = liar.guest
    liar.set("task_struct", "tasks.next", liar.tasks[3], liar.long_cycle(100_000))
    quickly(guest.processes)
    # Those behind the break are found backwards.
    assert {row.address for row in guest.processes()} >= set(liar.tasks)
    assert "list with a cycle" in whats(guest)


def test_endless_task_list(liar: Liar) -> None:
    liar.set("task_struct", "tasks.next", liar.tasks[3], liar.long_cycle(1_000_000))
    quickly(lambda: liar.guest.processes(threads=True), 60)


def test_thread_list_shared_by_everybody(liar: Liar) -> None:
    guest = liar.guest
    cycle = liar.long_cycle(200_000)
    for signal in liar.pointers("signal"):
        liar.set("signal_struct", "thread_head.next", signal, cycle)
        liar.set("signal_struct", "nr_threads", signal, 0x7FFF_FFFF)
    quickly(lambda: guest.processes(threads=True))
    assert {row.address for row in guest.processes(threads=True)} >= set(liar.tasks)
    quickly(guest.processes)
    assert len(guest.processes()) == len(liar.tasks)


def test_endless_chain_of_directories(liar: Liar) -> None:
    """A million parents, each with a name of one letter; then a ring; then without names."""
    guest, stride = liar.guest, 64
    offsets = [guest.types.offsetof("dentry", path) for path in ("d_parent", "d_name.name")]
    assert max(offsets) + 8 <= stride
    name = liar.room + (100 << 20)
    liar.write(name, b"x\x1b[2J\0")
    count = 1_000_000
    block = bytearray(count * stride)
    for number in range(count):
        at = number * stride
        struct.pack_into("<Q", block, at + offsets[0], liar.room + at + stride)
        struct.pack_into("<Q", block, at + offsets[1], name)
    liar.write(liar.room, bytes(block))
    for file in liar.pointers("mm.exe_file"):
        liar.set("file", "f_path.dentry", file, liar.room)
    for fs in liar.pointers("fs"):
        liar.set("fs_struct", "pwd.dentry", fs, liar.room)
    quickly(guest.processes)
    liar.set("dentry", "d_parent", liar.room + 1000 * stride, liar.room)
    quickly(guest.processes)
    liar.write(name, b"\0")
    quickly(guest.processes)


def test_mounts_in_a_ring(liar: Liar) -> None:
    guest = liar.guest
    inner = guest.types.offsetof("mount", "mnt")
    mounts = [address - inner for address in liar.pointers("fs.root.mnt")]
    layout = guest.layout("mount", ["mnt.mnt_root"])
    for mount in mounts:
        root = layout.read(guest.kernel, mount)["mnt.mnt_root"]
        fake = liar.room + 0x1000
        liar.set("mount", "mnt_parent", mount, fake)
        liar.set("mount", "mnt_mountpoint", mount, root)
        liar.set("mount", "mnt_parent", fake, mount)
        liar.set("mount", "mnt_mountpoint", fake, root)
        liar.set("mount", "mnt.mnt_root", fake, root)
    quickly(lambda: everything(guest))


def test_cgroups_in_a_ring(liar: Liar) -> None:
    guest = liar.guest
    member = "parent" if guest.types.has("kernfs_node", "parent") else "__parent"
    for node in liar.pointers("cgroups.dfl_cgrp.kn"):
        liar.set("kernfs_node", member, node, node)
    quickly(lambda: everything(guest))
    assert {process.cgroup_path for process in guest.processes()} == {None}


def test_module_users_without_end(liar: Liar) -> None:
    guest = liar.guest
    cycle = liar.long_cycle(200_000)
    for module in guest.modules():
        struct_at = _module_struct(guest, module.name)
        liar.set("module", "source_list.next", struct_at, cycle)
    quickly(guest.modules)


def test_module_list_in_a_ring(liar: Liar) -> None:
    first = _module_struct(liar.guest, liar.guest.modules()[0].name)
    offset = liar.guest.types.offsetof("module", "list")
    liar.set("module", "list.next", first, first + offset)
    quickly(liar.guest.modules)
    assert "list with a cycle" in whats(liar.guest)


@pytest.mark.parametrize(("count_bits", "size_bits"), [(21, 17), (21, 26), (21, 0), (1, 26)])
def test_log_with_overlapping_records(liar: Liar, count_bits: int, size_bits: int) -> None:
    """Every descriptor is in use, and its text claims 65,535 bytes."""
    guest = liar.guest
    ring = guest.pointer("prb")
    descs, infos, data = liar.room, liar.room + (64 << 20), liar.room + (300 << 20)
    sizes = guest.types.sizeof("prb_desc"), guest.types.sizeof("printk_info")
    used = min(1 << count_bits, 1 << 17)
    offsets = [
        guest.types.offsetof("prb_desc", path)
        for path in ("state_var.counter", "text_blk_lpos.begin", "text_blk_lpos.next")
    ]
    block = bytearray(used * sizes[0])
    for number in range(used):
        for offset, value in zip(offsets, (1 << 62 | number, 8 * number, 8 * number), strict=True):
            struct.pack_into("<Q", block, number * sizes[0] + offset, value)
    liar.write(descs, bytes(block))
    one = bytearray(b"\xff" * sizes[1])
    liar.write(infos, bytes(one * min(used, (200 << 20) // sizes[1])))
    liar.write(data, struct.pack(f"<{used}Q", *range(used)))
    for member, value in {
        "desc_ring.count_bits": count_bits, "text_data_ring.size_bits": size_bits,
        "desc_ring.descs": descs, "desc_ring.infos": infos, "text_data_ring.data": data,
        "desc_ring.tail_id": 0, "desc_ring.head_id": used - 1,
    }.items():  # fmt: skip
        liar.set("printk_ringbuffer", member, ring, value)
    quickly(lambda: _tolerant(guest.dmesg))


@pytest.mark.parametrize("bits", [22, 31, 40, 63, 200, 0xFFFF_FFFF])
def test_log_of_absurd_size(liar: Liar, bits: int) -> None:
    ring = liar.guest.pointer("prb")
    liar.set("printk_ringbuffer", "desc_ring.count_bits", ring, bits)
    with pytest.raises(CorruptDataError):
        liar.guest.dmesg()
    liar.set("printk_ringbuffer", "desc_ring.count_bits", ring, 10)
    liar.set("printk_ringbuffer", "text_data_ring.size_bits", ring, max(bits, 27))
    with pytest.raises(CorruptDataError):
        liar.guest.dmesg()


def test_clock_of_absurd_shift(liar: Liar) -> None:
    keeper = liar.guest.symbols.address("shadow_timekeeper")
    for member, value in (("tkr_mono.shift", 200), ("xtime_sec", (1 << 64) - 1)):
        liar.set("timekeeper", member, keeper, value)
    quickly(lambda: everything(liar.guest))


def test_every_cpu_is_possible(liar: Liar) -> None:
    mask = liar.guest.symbols.address("__cpu_possible_mask")
    liar.write(mask, b"\xff" * liar.guest.types.sizeof("cpumask"))
    quickly(lambda: everything(liar.guest))


def test_many_processes_with_long_strings(liar: Liar) -> None:
    """30,000 processes, each with its own 32 KiB of arguments: all in the same page."""
    guest, types = liar.guest, liar.guest.types
    model = next(process for process in guest.processes() if process.cmdline)
    size, mm_size = -(-types.sizeof("task_struct") // 64) * 64, types.sizeof("mm_struct")
    task = bytearray(guest.kernel.read(model.address, size))
    mm_at = types.offsetof("task_struct", "mm")
    mm = guest.kernel.read(int.from_bytes(task[mm_at : mm_at + 8], "little"), mm_size)
    node, count = types.offsetof("task_struct", "tasks"), 30_000
    mms = liar.room + count * size
    for number in range(count):
        here = liar.room + number * size
        struct.pack_into("<QQ", task, node, here + size + node, here - size + node)
        struct.pack_into("<Q", task, mm_at, mms + number * mm_size)
        liar.write(here, bytes(task))
        liar.write(mms + number * mm_size, mm)
    space = guest.process_space(model.pid)
    start = int.from_bytes(mm[(at := types.offsetof("mm_struct", "arg_start")) : at + 8], "little")
    page = space.translate(start) & -4096
    liar.memory.write(page, b"\x1b" * 4095)
    for number in range(count):
        at = mms + number * mm_size
        liar.set("mm_struct", "arg_start", at, start & -4096)
        liar.set("mm_struct", "arg_end", at, (start & -4096) + 4096)
    liar.set("task_struct", "tasks.next", liar.tasks[3], liar.room + node)
    head = guest.symbols.address("init_task")
    liar.set("task_struct", "tasks.next", liar.room + (count - 1) * size, head + node)
    quickly(guest.processes, 60)


@pytest.mark.parametrize("slot", [0, 1, 7])
def test_maple_tree_in_a_ring(liar: Liar, slot: int) -> None:
    """A node that is its own child, in every tree; then one with endless children of its own."""
    guest = liar.guest
    root_at = guest.types.offsetof("mm_struct", "mm_mt.ma_root")
    slots = guest.types.offsetof("maple_node", "ma64.slot")
    range_64 = guest.types.enumerators("maple_type")["maple_arange_64"]
    for mm in liar.pointers("mm"):
        node = liar.room + 0x100
        liar.write(node + slots, struct.pack("<Q", node | range_64 << 3 | 4) * (slot + 1))
        liar.write(mm + root_at, struct.pack("<Q", node | range_64 << 3 | 2))
    quickly(lambda: guest.maps(1), 5)
    assert "maple tree with a cycle" in whats(guest)


def test_wide_and_endless_maple_tree(liar: Liar) -> None:
    """Each of many nodes leads to ten others, level after level."""
    guest = liar.guest
    root_at = guest.types.offsetof("mm_struct", "mm_mt.ma_root")
    slots = guest.types.offsetof("maple_node", "ma64.slot")
    pivots = guest.types.offsetof("maple_node", "ma64.pivot")
    kind = guest.types.enumerators("maple_type")["maple_arange_64"] << 3 | 4
    count = (256 << 20) // 256
    block = bytearray(count * 256)
    for number in range(count):
        children = [(10 * number + child + 1) % count for child in range(10)]
        entries = [liar.room + child * 256 | kind for child in children]
        struct.pack_into("<9Q", block, number * 256 + pivots, *range(1000, 10_000, 1000))
        struct.pack_into("<10Q", block, number * 256 + slots, *entries)
    liar.write(liar.room, bytes(block))
    for mm in liar.pointers("mm"):
        liar.write(mm + root_at, struct.pack("<Q", liar.room | kind))
    quickly(lambda: guest.maps(1))


def test_list_of_mounts_in_a_ring(liar: Liar) -> None:
    guest = liar.guest
    expected = guest.mounts()
    cycle = liar.long_cycle(50_000)
    for namespace in liar.pointers("nsproxy.mnt_ns"):
        liar.set("mnt_namespace", "list.next", namespace, cycle)
    quickly(guest.mounts)
    # Found backwards; what the cycle leads to is no mount of the namespace's.
    assert set(guest.mounts()) <= set(expected)
    assert "list with a cycle" in whats(guest)


def test_memory_with_a_name(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's kernels are built without CONFIG_ANON_VMA_NAME: the names are made up here."""
    guest = liar.guest
    monkeypatch.setattr(maps, "keeps_names", lambda _: True)
    name = liar.room + 64
    liar.write(name + guest.types.offsetof("anon_vma_name", "name"), b"pool \x1b[2J\0")
    before = guest.maps(1)
    process = find_user_process(guest, 1, {"tree": "mm.mm_mt.ma_root"})
    areas = walk_maple(guest, process["tree"], Budget()).nodes
    for area in areas:
        liar.set("vm_area_struct", "anon_name", area, name)
    after = guest.maps(1)
    for old, new in zip(before, after, strict=True):
        assert new.path == (old.path or b"[anon:pool \x1b[2J]")
    assert before != after


@pytest.mark.parametrize("count", [128, 1 << 20, 0xFFFF_FFF8, 0xFFFF_FFFF])
def test_tables_of_files_without_end(liar: Liar, count: int) -> None:
    """Everybody has the same table of a million files, each in use."""
    guest = liar.guest
    file = guest.kernel.read_u64(liar.pointers("files.fdt.fd")[0])
    liar.write(liar.room, struct.pack("<Q", file) * (8 << 20 >> 3))
    for table in liar.pointers("files.fdt"):
        liar.set("fdtable", "max_fds", table, count)
        liar.set("fdtable", "fd", table, liar.room)
        liar.set("fdtable", "open_fds", table, liar.room)
        liar.set("fdtable", "close_on_exec", table, liar.room + count // 8)
    quickly(guest.files, 60)
    mine = guest.files(1)
    assert {row.pid for row in mine} == {1}
    # The bitmap of the largest ones is not in memory.
    assert {row.flags is None for row in mine} == {count > 1 << 20}


def test_environment_that_is_not_all_there(liar: Liar) -> None:
    guest = liar.guest
    whole = guest.environment(1)
    assert len(whole) > 1
    layout = guest.layout("task_struct", {"mm": "mm", "start": "mm.env_start", "end": "mm.env_end"})
    init = layout.read(guest.kernel, liar.tasks[0])
    # The environment now begins a page that is not there before the real one.
    size = init["end"] - (init["start"] & -4096)
    begin = 0x20_0000 - 4096  # below the program; its heap may be anywhere in the GiB above it
    assert guest.process_space(1).read_available(begin, 4096) == []
    liar.set("mm_struct", "env_start", init["mm"], begin)
    liar.set("mm_struct", "env_end", init["mm"], begin + 4096)
    assert guest.environment(1) == []
    assert "4096 bytes of the environment of process 1 are not in memory" in whats(guest)
    # Up to the end of the stack's last page: what is behind the environment is there, too.
    liar.set("mm_struct", "env_start", init["mm"], init["start"])
    liar.set("mm_struct", "env_end", init["mm"], init["start"] + size + (1 << 20))
    assert guest.environment(1)[: len(whole)] == whole
    assert any("are not in memory" in what for what in whats(guest))


def test_sockets_in_a_long_cycle(liar: Liar) -> None:
    """Long chains of what is no socket, in every table that has sockets."""
    guest = liar.guest
    real = {row.address for row in guest.sockets() if row.pid is not None}
    cycle = liar.long_cycle(1_000_000)
    for address in {row.address for row in guest.sockets()}:
        liar.set("sock", "__sk_common.skc_node.next", address, cycle)
    quickly(guest.sockets)
    assert real <= {row.address for row in guest.sockets()}  # processes still have them open
    assert "chain longer than 65536 entries" in whats(guest)


@pytest.mark.parametrize("buckets", [1 << 20, 1 << 22, 1 << 31])
def test_sockets_in_a_huge_table(liar: Liar, buckets: int) -> None:
    """A table of buckets that all lead to different places, or to the same one."""
    guest = liar.guest
    info = guest.symbols.address("tcp_hashinfo")
    many = min(buckets, 1 << 21)
    for stride in (0, 256):
        words = [liar.room + (64 << 20) + stride * number for number in range(many)]
        liar.write(liar.room, struct.pack(f"<{many}Q", *words))
        liar.set("inet_hashinfo", "ehash", info, liar.room)
        liar.set("inet_hashinfo", "ehash_mask", info, buckets - 1)
        quickly(guest.sockets)


def test_every_process_claims_many_files(liar: Liar) -> None:
    guest = liar.guest
    socket = next(row for row in guest.sockets() if row.pid is not None)
    layout = guest.layout("task_struct", {"fdt": "files.fdt", "fd": "files.fdt.fd"}, text=())
    columns = layout.lists(guest.kernel, liar.tasks, [])
    process = next(row for row in guest.processes() if row.pid == socket.pid)
    assert socket.fd is not None
    array = columns["fd"][liar.tasks.index(process.address)]
    file = guest.kernel.read_u64(array + 8 * socket.fd)
    liar.write(liar.room, struct.pack("<Q", file) * (1 << 20))
    for table in filter(None, columns["fdt"]):
        liar.set("fdtable", "fd", table, liar.room)
        liar.set("fdtable", "max_fds", table, 1 << 20)
    quickly(guest.sockets)
    assert any("not complete" in what for what in whats(guest))


def test_interfaces_in_a_ring(liar: Liar) -> None:
    guest = liar.guest
    net = guest.symbols.address("init_net")
    cycle = liar.long_cycle(1_000_000)
    liar.set("net", "dev_base_head.next", net, cycle)
    quickly(guest.interfaces)
    liar.set("net", "list.next", net, cycle)
    quickly(guest.interfaces)
    quickly(guest.sockets)


def _module_struct(guest: LinuxGuest, name: bytes) -> int:
    """Address of a ``struct module``."""
    offset = guest.types.offsetof("module", "list")
    node = guest.pointer("modules")
    while guest.kernel.string(node - offset + guest.types.offsetof("module", "name")) != name:
        node = guest.kernel.read_u64(node)
    return node - offset


def _tolerant(run: Callable[[], Iterable[object]]) -> None:
    try:
        list(islice(run(), 10))
    except VirtIntrospectError:
        return
