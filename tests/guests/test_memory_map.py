"""The guest-physical map against QEMU's own, which a bare QEMU tells over its monitor.

No guest boots here: QEMU stays stopped (``-S``) and is asked where its RAM blocks are
(``info mtree -f``) and at which of its addresses a guest address lies (``gpa2hva``).
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from virtintrospect_kvm.driver import KvmTarget, open_process
from virtintrospect_kvm.layout import layout_of
from virtintrospect_kvm.qmp import Monitor, MonitorError
from virtintrospect_kvm.remote import regions_of
from virtintrospect_kvm.standalone import arguments_of

from virtintrospect.domain import Domain
from virtintrospect.memory import Region
from virtintrospect.memory.base import merge

from .lab.hugepages import hugepages

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86")

GIB = 1 << 30
_RAM = re.compile(
    r"^  ([0-9a-f]{16})-([0-9a-f]{16}) \(prio \d+, (?:ram|rom)\): (\S+)(?: @([0-9a-f]+))?", re.M
)

MEMFD = "memory-backend-memfd,id={name},size={size},share=on"
PRIVATE = "memory-backend-ram,id={name},size={size}"


class BareQemu:
    """A stopped QEMU with a monitor of our own."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        assert QEMU is not None
        self.uuid = str(uuid.uuid4())
        path = folder / "monitor"
        self.process = subprocess.Popen(
            [QEMU, "-uuid", self.uuid, "-accel", "tcg,tb-size=16", "-nodefaults", "-display",
             "none", "-S", "-qmp", f"unix:{path},server=on,wait=off", *arguments],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 120
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    raise AssertionError(self.process.communicate()[1]) from None
                time.sleep(0.01)
        self.stream = self.socket.makefile("rw")
        self.stream.readline()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        self.stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.stream.flush()
        while "return" not in (answer := json.loads(self.stream.readline())):
            assert "error" not in answer, answer
        return answer["return"]

    def monitor(self, line: str) -> str:
        text: str = self.command("human-monitor-command", **{"command-line": line})
        return text

    def domain(self, xml: str = "<domain/>") -> Domain:
        return Domain("bare", self.uuid, 1, "paused", "QEMU", "qemu:///system", xml)

    def ram(self, *names: str) -> list[tuple[Region, str, int]]:
        """Where the machine sees its RAM blocks: range, block, offset."""
        text = self.monitor("info mtree -f")
        text = next(part for part in text.split("FlatView") if '"memory"' in part)
        return [
            (Region(int(start, 16), int(end, 16) + 1), name, int(offset or "0", 16))
            for start, end, name, offset in _RAM.findall(text)
            if name in names
        ]

    def host_address(self, paddr: int) -> int:
        text = self.monitor(f"gpa2hva {paddr:#x}")
        assert " is 0x" in text, text
        return int(text.split()[-1], 16)

    def close(self) -> None:
        self.stream.close()
        self.socket.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[BareQemu] = []

    def run(*arguments: str) -> BareQemu:
        started.append(BareQemu(tmp_path, list(arguments)))
        return started[-1]

    yield run
    for qemu in started:
        qemu.close()


class Told(Monitor):
    """The connection that the test has, as the driver wants one."""

    def __init__(self, qemu: BareQemu) -> None:
        self._qemu = qemu

    def command(self, name: str, arguments: Any = None, *, files: Sequence[int] = ()) -> Any:
        assert not files
        try:
            return self._qemu.command(name, **(arguments or {}))
        except AssertionError as error:
            raise MonitorError(name, "GenericError", str(error)) from error

    def close(self) -> None:
        pass


def agree(qemu: BareQemu, target: KvmTarget, *names: str) -> None:
    """Every range that QEMU's map has is in ours, with the same block and offset.

    What the monitor tells gives the same map as the command line.
    """
    told = layout_of(arguments_of(Told(qemu)))
    assert list(merge(sorted(regions_of(told)))) == list(merge(sorted(regions_of(target.layout))))
    seen = qemu.ram(*names)
    assert seen
    for region, name, offset in seen:
        if region.end <= 0x100000:
            continue  # below 1 MiB firmware decides what is shown (PAM registers)
        for piece in target.layout.pieces:
            if piece.start <= region.start and region.end <= piece.end:
                assert target.layout.blocks[piece.block].name == name
                assert region.start - piece.start + piece.offset == offset
                break
        else:
            pytest.fail(f"{name} at {region.start:#x}-{region.end:#x} is not in our map")
    known = sum(region.size for region, _, _ in seen if region.start >= 0x100000)
    assert known == sum(
        p.end - max(p.start, 0x100000) for p in target.layout.pieces if p.end > 0x100000
    )
    for piece in target.layout.pieces:
        block = target.memory._pieces[target.memory.region_index(piece.start)][2]
        for paddr in (piece.start, piece.end - 4096):
            if piece.start >= 0x100000:
                address = (
                    block._pagemap._first * 4096
                    + paddr
                    - target.memory._pieces[target.memory.region_index(paddr)][3]
                )
                assert address == qemu.host_address(paddr)


SIZES = [16, 512, 2815, 2816, 3072, 3583, 3584, 4096, 6144]


@pytest.mark.parametrize("backend", [MEMFD, PRIVATE], ids=["memfd", "anonymous"])
@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("mib", SIZES)
def test_one_block(start: Any, machine: str, mib: int, backend: str) -> None:
    qemu = start(
        "-machine", f"{machine},memory-backend=pc.ram", "-m", str(mib),
        "-object", backend.format(name="pc.ram", size=f"{mib}M"),
    )  # fmt: skip
    with open_process(qemu.domain()) as target:
        agree(qemu, target, "pc.ram")
        assert target.transport == ("kvm-mmap" if backend is MEMFD else "kvm-process")


@pytest.mark.parametrize(
    ("machine", "mib"),
    [
        ("q35,max-ram-below-4g=1G", 4096),
        ("q35,max-ram-below-4g=4G", 4096),
        ("pc,max-ram-below-4g=2G", 4096),
        ("pc,max-ram-below-4g=3840M", 3800),
        ("pc,max-ram-below-4g=3840M", 4096),
        ("pc-i440fx-1.7", 4096),
        ("pc-i440fx-2.0", 4096),
        ("pc-q35-2.4", 4096),
        ("pc-q35-7.0", 6144),
    ],
)
def test_machine_options(start: Any, machine: str, mib: int) -> None:
    qemu = start("-machine", machine, "-m", f"size={mib * 1024}k")
    with open_process(qemu.domain()) as target:
        agree(qemu, target, "pc.ram")


@pytest.mark.parametrize("backend", [MEMFD, PRIVATE], ids=["memfd", "anonymous"])
@pytest.mark.parametrize("sizes", [(3072, 3072), (1024, 1024, 4096), (512, 1536, 512)])
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_numa(start: Any, machine: str, sizes: tuple[int, ...], backend: str) -> None:
    arguments = ["-machine", machine, "-m", str(sum(sizes)), "-smp", str(len(sizes))]
    names = [f"ram-node{node}" for node in range(len(sizes))]
    for node, (name, mib) in enumerate(zip(names, sizes, strict=True)):
        arguments += ["-object", backend.format(name=name, size=f"{mib}M")]
        arguments += ["-numa", f"node,nodeid={node},cpus={node},memdev={name}"]
    qemu = start(*arguments)
    with open_process(qemu.domain()) as target:
        agree(qemu, target, *names)


@pytest.mark.parametrize("backend", [MEMFD, PRIVATE], ids=["memfd", "anonymous"])
def test_dimm_at_boot_and_hotplugged(start: Any, backend: str) -> None:
    qemu = start(
        "-machine", "q35", "-m", "size=1G,slots=4,maxmem=8G",
        "-object", backend.format(name="memdimm0", size="256M"),
        "-device", '{"driver":"pc-dimm","memdev":"memdimm0","id":"dimm0","addr":4294967296}',
    )  # fmt: skip
    with open_process(qemu.domain()) as target:
        agree(qemu, target, "pc.ram", "memdimm0")
    kind = backend.split(",")[0]
    shared = {"share": True} if backend is MEMFD else {}
    qemu.command("object-add", **{"qom-type": kind, "id": "memdimm1", "size": 512 << 20}, **shared)
    qemu.command("device_add", driver="pc-dimm", id="dimm1", memdev="memdimm1")
    (plugged,) = [region for region, _, _ in qemu.ram("memdimm1")]
    xml = f"""<domain><devices><memory model='dimm'><target><size unit='KiB'>524288</size></target>
      <alias name='dimm1'/><address type='dimm' slot='1' base='{plugged.start:#x}'/></memory>
      </devices></domain>"""
    with open_process(qemu.domain(xml)) as target:
        agree(qemu, target, "pc.ram", "memdimm0", "memdimm1")


def test_terabyte_guest_of_another_vendor(start: Any) -> None:
    qemu = start(
        "-machine", "q35,memory-backend=pc.ram", "-m", "990G", "-cpu", "max,vendor=GenuineIntel",
        "-object", MEMFD.format(name="pc.ram", size="990G"),
    )  # fmt: skip
    with open_process(qemu.domain()) as target:
        agree(qemu, target, "pc.ram")


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_bios(start: Any, machine: str) -> None:
    qemu = start("-machine", machine, "-m", "128")
    ((region, _, _),) = [rom for rom in qemu.ram("pc.bios") if rom[0].start > 1 << 30]
    with open_process(qemu.domain()) as target:
        assert target.memory.regions[-1] == region
        assert target.memory._pieces[-1][2]._pagemap._first << 12 == qemu.host_address(region.start)
        assert target.memory.read((4 << 30) - 16, 1) == b"\xea"  # the reset vector: a far jump
        assert target.memory.size == (128 << 20) - 0x20000 + region.size


def test_pflash(start: Any, tmp_path: Path) -> None:
    code, variables = tmp_path / "CODE.fd", tmp_path / "VARS.fd"
    code.write_bytes(b"\x90" * (2 << 20))
    variables.write_bytes(b"\x55" * (128 << 10))
    arguments = ["-machine", "q35,pflash0=f0,pflash1=f1", "-m", "128"]
    for number, path in enumerate((code, variables)):
        arguments += ["-blockdev", json.dumps({"driver": "file", "filename": str(path),
                      "node-name": f"s{number}", "auto-read-only": True})]  # fmt: skip
        arguments += ["-blockdev", json.dumps({"driver": "raw", "file": f"s{number}",
                      "node-name": f"f{number}", "read-only": number == 0})]  # fmt: skip
    qemu = start(*arguments)
    with open_process(qemu.domain()) as target:
        high = 4 << 30
        assert target.memory.regions[-2:] == (
            Region(high - (2 << 20) - (128 << 10), high - (2 << 20)),
            Region(high - (2 << 20), high),
        )
        assert target.memory.read(high - (2 << 20) - 1, 2) == b"\x55\x90"
        assert target.memory._pieces[-1][2]._pagemap._first << 12 == qemu.host_address(
            high - (2 << 20)
        )


def test_unknown_machine(start: Any) -> None:
    from virtintrospect.errors import MemoryAccessError

    qemu = start("-machine", "microvm", "-m", "256")
    with pytest.raises(MemoryAccessError, match="microvm"):
        open_process(qemu.domain())


@pytest.fixture
def huge_pages() -> Iterator[None]:
    with hugepages(64) as enough:
        if not enough:
            pytest.skip("this machine's kernel gives no huge pages")
        yield


@pytest.mark.usefixtures("huge_pages")
@pytest.mark.parametrize("share", ["on", "off"])
def test_huge_pages(start: Any, share: str) -> None:
    """An absent huge page is neither allocated nor touched (that could be a SIGBUS)."""

    def free() -> int:
        return int(re.findall(r"HugePages_Free:\s+(\d+)", Path("/proc/meminfo").read_text())[0])

    qemu = start(
        "-machine", "q35,memory-backend=pc.ram", "-m", "64", "-object",
        f"memory-backend-memfd,id=pc.ram,size=64M,hugetlb=on,hugetlbsize=2M,share={share}",
    )  # fmt: skip
    with open_process(qemu.domain()) as target:
        agree(qemu, target, "pc.ram")
        before = free()
        memory = target.memory
        assert memory.read(8 << 20, 32 << 20) == bytes(32 << 20)
        assert memory.gather([8 << 20, 40 << 20], 8) == bytes(16)
        assert memory.view(8 << 20, 4096) is None
        for run in memory.resident():
            memory.read(run.start, min(run.size, 1 << 20))
        assert free() == before
