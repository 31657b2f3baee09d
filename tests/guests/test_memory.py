"""Reading the memory of real guests: the right bytes, none disturbed, every failure named."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from virtintrospect_kvm.domainxml import arguments_of
from virtintrospect_kvm.driver import KvmTarget, open_process
from virtintrospect_kvm.layout import layout_of
from virtintrospect_kvm.remote import regions_of

from tests.descriptors import descriptors
from virtintrospect.errors import (
    AccessDeniedError,
    EncryptedMemoryError,
    FaultError,
    MemoryAccessError,
    TargetGoneError,
)
from virtintrospect.memory import PhysicalMemory
from virtintrospect.memory.base import merge
from virtintrospect.memory.image import open_image

from .lab.hugepages import hugepages
from .small import PATTERN, SmallGuest, small_guest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="libvirt's system mode needs root")
ROOT = Path(__file__).parents[2]
MIB = 1 << 20
#: What the host's kernel may give QEMU by itself, in KiB: it makes huge pages of small ones
#: (khugepaged, 16 MiB at a time). Who touches what is absent adds all of the guest's RAM.
_BY_ITSELF = 32 << 10


@pytest.fixture(scope="module", params=["memfd", "anonymous"])
def guest(request: pytest.FixtureRequest) -> Iterator[SmallGuest]:
    with small_guest(backing=request.param) as running:
        yield running


def sees_the_guest(guest: SmallGuest, target: KvmTarget) -> None:
    """The map has all that the guest calls RAM, and its bytes are where it says.

    The domain's XML alone gives the same map as QEMU's command line.
    """
    xml = guest.domain.xml
    ours, theirs = (
        list(merge(sorted(regions_of(layout))))
        for layout in (target.layout, layout_of(arguments_of(xml), xml))
    )
    assert ours == theirs
    regions = list(merge(target.memory.regions))
    ram = guest.system_ram()
    assert ram
    for start, end in ram:
        assert any(r.start <= start and end <= r.end for r in regions), hex(start)
    assert target.memory.read(guest.pattern(), len(PATTERN)) == PATTERN


def sweep(memory: PhysicalMemory) -> int:
    """Read every page of every region; the number of bytes that are not zero."""
    total = 0
    for region in memory.regions:
        for paddr in range(region.start, region.end, MIB):
            total += bool(memory.read(paddr, min(MIB, region.end - paddr)).strip(b"\0"))
    return total


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
@pytest.mark.parametrize("mib", [3072, 4096, 6144])
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_map_and_full_scan(machine: str, mib: int, backing: str) -> None:
    with small_guest(machine=machine, mib=mib, backing=backing) as guest:
        with open_process(guest.domain) as target:
            sees_the_guest(guest, target)
            if mib >= 4096:
                assert guest.pattern() >= 4 << 30
            guest.handle.suspend()  # so that what changes is our doing, not the guest's
            before = guest.resident_kib(), guest.allocated_kib()
            assert sweep(target.memory)
            for region in target.memory.resident():
                for paddr in range(region.start, region.end, MIB):
                    target.memory.read(paddr, min(MIB, region.end - paddr))
            after = guest.resident_kib(), guest.allocated_kib()
        # It may be less: QEMU gives back what is its own when it likes.
        assert all(b - a < _BY_ITSELF for a, b in zip(before, after, strict=True)), (before, after)
        assert "tainted" not in Path(f"/var/log/libvirt/qemu/{guest.name}.log").read_text()


@contextlib.contextmanager
def suspended(guest: SmallGuest) -> Iterator[None]:
    """The guest while it writes nothing."""
    guest.handle.suspend()
    try:
        yield
    finally:
        guest.handle.resume()


def around(memory: PhysicalMemory, paddr: int, size: int) -> tuple[int, int]:
    """Start and size of what lies so far around the page of an address, within its region."""
    region = next(r for r in memory.regions if r.start <= paddr < r.end)
    page = paddr & ~0xFFF
    start = max(region.start, page - size)
    return start, min(region.end, page + size) - start


def test_same_bytes_every_way(guest: SmallGuest) -> None:
    with suspended(guest), open_process(guest.domain) as target:
        memory = target.memory
        sees_the_guest(guest, target)
        at = guest.pattern()
        assert (
            memory.gather([at + 32, at, at + 1], 16)
            == PATTERN[32:48] + PATTERN[:16] + PATTERN[1:17]
        )
        runs = list(memory.resident())
        assert any(run.start <= at < run.end for run in runs)
        absent = next(r.end for r, n in pairwise(runs) if n.start > r.end > MIB)
        for start in (around(memory, at, 4096)[0], absent, memory.regions[-1].end - 8192):
            close, whole = range(0, 8192 - 48, 20), memory.read(start, 8192)
            expected = b"".join(whole[i : i + 48] for i in close)
            assert memory.gather([start + i for i in close], 48) == expected
        outside, faults = memory.regions[-1].end, []  # type: ignore[var-annotated]
        assert memory.gather([at, outside, at], 8, faults) == PATTERN[:8] + bytes(8) + PATTERN[:8]
        assert faults == [1]
        with pytest.raises(FaultError):
            memory.gather([at, 0xA0000], 8)
        with pytest.raises(FaultError):
            memory.read(0x9FFFC, 8)
        view, block = memory.view(at, 16), memory.mapped(at)
        if target.transport == "kvm-mmap":
            assert bytes(view) == PATTERN[:16]  # type: ignore[arg-type]
            assert block is not None
            assert block.present[(at - block.start) >> 12]
            offset = at - block.start
            assert bytes(block.buffer[offset : offset + 16]) == PATTERN[:16]
            assert block.buffer.readonly
        else:
            assert view is None
            assert block is None
        assert memory.read(absent, 4096) == bytes(4096)
        assert memory.view(absent, 4096) is None
        many = [at + i % 32 for i in range(3000)]
        assert memory.gather(many, 8) == b"".join(PATTERN[i % 32 :][:8] for i in range(3000))
        start, size = around(memory, at, 8 * MIB)
        assert memory.read(start, size)[at - start :][:64] == PATTERN[:64]


def test_the_dump_says_the_same(guest: SmallGuest, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "dump"
    with suspended(guest):
        guest.handle.coreDumpWithFormat(str(path), 0, 1 << 4)  # VIR_DUMP_MEMORY_ONLY
        with open_process(guest.domain) as target, open_image(path) as image:
            assert image.read(guest.pattern(), len(PATTERN)) == PATTERN
            assert [note.name for note in image.notes].count("QEMU") == 1  # type: ignore[attr-defined]
            for region in target.memory.regions[:2]:
                for paddr in range(max(region.start, MIB), region.end, MIB):
                    assert image.read(paddr, MIB) == target.memory.read(paddr, MIB), hex(paddr)


def _read_until_gone(memory: PhysicalMemory, at: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        memory.read(at, 8)
        memory.gather([at, at + 8], 8)


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
def test_destroyed_in_mid_read(backing: str) -> None:
    with small_guest(backing=backing) as guest, open_process(guest.domain) as target:
        at, memory, domain = guest.pattern(), target.memory, guest.domain
        threading.Timer(0.2, guest.handle.destroy).start()
        with pytest.raises(TargetGoneError, match="has ended"):
            _read_until_gone(memory, at)
        time.sleep(0.002)
        asks: list[Callable[[], object]] = [
            lambda: memory.read(at, 8),
            lambda: memory.read(at, MIB),
            lambda: memory.gather([at], 8),
            lambda: list(memory.resident()),
            lambda: target.check(),
        ]
        for ask in asks:
            with pytest.raises(TargetGoneError):
                ask()
        with pytest.raises(MemoryAccessError):
            open_process(domain)


def test_closed_target_reads_no_more(guest: SmallGuest) -> None:
    before = descriptors()
    target = open_process(guest.domain)
    assert descriptors() - before
    target.close()
    target.close()
    assert descriptors() - before == set()
    with pytest.raises(MemoryAccessError):
        target.memory.read(0x100000, 8)


#: In one process, since nobody may not even reach this Python: once as root, to have all
#: modules loaded, then as nobody.
_AS_NOBODY = """
import os, sys
from virtintrospect.domain import Domain
from virtintrospect.errors import VirtIntrospectError
from virtintrospect_kvm.driver import open_process
domain = Domain(sys.argv[1], sys.argv[2], 1, "running", "QEMU", "qemu:///system")
open_process(domain).close()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    open_process(domain)
except VirtIntrospectError as error:
    print(type(error).__name__, error.exit_code, error, error.hint, sep="|")
"""


def test_nobody_is_refused(guest: SmallGuest) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("", "kvm", "xen"))
    answer = subprocess.run(
        [sys.executable, "-B", "-c", _AS_NOBODY, guest.name, guest.handle.UUIDString()],
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"]}, capture_output=True, text=True,
        check=True, cwd="/",
    )  # fmt: skip
    kind, code, text, hint = answer.stdout.strip().split("|")
    assert (kind, code) == (AccessDeniedError.__name__, "4")
    assert guest.name in text
    assert "root" in hint
    assert "CAP_SYS_PTRACE" in hint


def test_reading_outlives_the_privilege(guest: SmallGuest) -> None:
    """Opened as root, read as nobody: memory stays readable, bulk reads included."""
    with open_process(guest.domain) as target:
        at = guest.pattern()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                memory = target.memory
                start, size = around(memory, at, MIB)
                assert memory.read(at, 16) == PATTERN[:16]
                assert memory.gather([at, at + 1], 16) == PATTERN[:16] + PATTERN[1:17]
                assert memory.read(start, size)[at - start :][:64] == PATTERN[:64]
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


def test_domains_that_cannot_be_read(guest: SmallGuest) -> None:
    domain = guest.domain
    sev = domain.xml.replace("<devices>", "<launchSecurity type='sev'/><devices>")
    with pytest.raises(EncryptedMemoryError, match="SEV"):
        open_process(dataclasses.replace(domain, xml=sev))
    with pytest.raises(MemoryAccessError, match="is shut off"):
        open_process(dataclasses.replace(domain, id=None, state="shut off"))
    with pytest.raises(MemoryAccessError, match="runs on far"):
        open_process(dataclasses.replace(domain, uri="qemu+ssh://far/system"))
    other = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(MemoryAccessError, match=re.escape(other)):
        open_process(dataclasses.replace(domain, uuid=other))


def test_without_the_pid_file(guest: SmallGuest) -> None:
    domain = dataclasses.replace(guest.domain, name="another name")
    with open_process(domain) as target:
        assert target.process.pid == guest.pid


_CELLS = (
    "<numa><cell id='0' cpus='0' memory='2048' unit='MiB'/>"
    "<cell id='1' memory='3072' unit='MiB'/></numa>"
)


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
def test_numa_and_hotplug(backing: str) -> None:
    with small_guest(
        mib=5120, backing=backing, cpu=_CELLS,
        maximum="<maxMemory slots='4' unit='GiB'>8</maxMemory>",
    ) as guest:  # fmt: skip
        with open_process(guest.domain) as target:
            assert len(target.layout.blocks) == 2
            sees_the_guest(guest, target)
        guest.handle.attachDevice(
            "<memory model='dimm'><target><size unit='MiB'>256</size><node>1</node></target>"
            "</memory>"
        )
        with open_process(guest.domain) as target:
            assert len(target.layout.blocks) == 3
            sees_the_guest(guest, target)
            assert target.memory.size == (5376 << 20) - 0x20000 + 0x40000  # VGA's window, SeaBIOS


@pytest.mark.parametrize("backing", ["hugepages", "private-hugepages"])
def test_huge_pages(backing: str) -> None:
    with hugepages(512) as enough:
        if not enough:
            pytest.skip("this machine's kernel gives no huge pages")
        _reads_without_growing(backing)


def test_file_backing() -> None:
    _reads_without_growing("file")


def _reads_without_growing(backing: str) -> None:
    with small_guest(backing=backing) as guest, open_process(guest.domain) as target:
        assert target.transport == ("kvm-process" if "private" in backing else "kvm-mmap")
        sees_the_guest(guest, target)
        guest.handle.suspend()
        before = guest.resident_kib()
        sweep(target.memory)
        assert guest.resident_kib() - before < 1024
