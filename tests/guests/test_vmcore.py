"""/proc/vmcore of a real crash: a kernel that panics, and the next that hands its memory out."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support
from virtintrospect.imagetarget import CoreTarget
from virtintrospect.memory.elfcore import ElfCore
from virtintrospect.session import Session, open_session

from .lab.domain import Config
from .lab.guest import Guest, GuestError
from .lab.initramfs import initramfs, program
from .lab.kernels import kernel

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="real guests need root"),
    pytest.mark.timeout(600),  # two kernels boot one after the other
]
MIB = 1 << 20
#: Large enough for the crash kernel wherever KASLR puts the first one.
CONFIG = Config("6.1", ram_mib=512, cmdline="crashkernel=192M lab.workload=0", pti=False)
PATIENCE = 120


class Crashed:
    """The dump, and what the guest said of itself before."""

    def __init__(self, guest: Guest, path: Path) -> None:
        self.path = path
        image = kernel(CONFIG.kernel)
        guest.put("/tmp/vmlinuz", image.vmlinuz.read_bytes())
        guest.put("/tmp/initramfs", initramfs(image).read_bytes())
        guest.put("/tmp/kexec", program("kexec").read_bytes(), 0o755)
        options = "nr_cpus=1"
        assert guest.run(f"/tmp/kexec /tmp/vmlinuz /tmp/initramfs '{options}'", 120) == b"loaded\n"
        self.version = guest.get("/proc/version")
        self.modules = guest.get("/proc/modules")
        self.stext = int(guest.run("grep ' _stext$' /proc/kallsyms").split()[0], 16)
        with contextlib.suppress(GuestError):  # on a busy machine it comes before the answer
            guest.run("(sleep 3; echo c > /proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &", 10)
        guest.disconnect()
        deadline = time.monotonic() + PATIENCE
        # The second kernel's word, not the first one's, which may come late.
        while b"lab: ready" not in guest.console.read_bytes().partition(b"Kernel panic")[2]:
            assert time.monotonic() < deadline, guest.console.read_text(errors="replace")[-2000:]
            time.sleep(0.1)
        guest.wait_ready(PATIENCE)
        size = int(guest.run("stat -c %s /proc/vmcore"))
        with path.open("wb") as file:
            for at in range(0, size, 16 * MIB):
                dd = f"dd if=/proc/vmcore bs=1048576 skip={at // MIB} count=16 2>/dev/null"
                file.write(guest.run(dd, 60))
        assert path.stat().st_size == size


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashed]:
    path = tmp_path_factory.mktemp("vmcore") / "vmcore"
    with Guest(CONFIG) as guest:
        found = Crashed(guest, path)
    yield found
    path.unlink()


@pytest.fixture
def session(crashed: Crashed) -> Iterator[Session]:
    with open_session(str(crashed.path)) as session:
        yield session


def test_the_kernel_that_crashed(session: Session, crashed: Crashed) -> None:
    info = session.info()
    assert crashed.version.startswith(b"Linux version " + info.release)
    assert session.symbols.address("_stext") == crashed.stext
    assert info.kaslr_slide == crashed.stext - 0xFFFFFFFF81000000
    names = [line.split()[0] for line in crashed.modules.splitlines()]
    assert [module.name for module in session.modules()] == names
    assert {process.name for process in session.processes()} >= {b"init", b"agent", b"kthreadd"}
    assert any(b"sysrq triggered crash" in record.text for record in session.dmesg())


def test_notes_are_used(session: Session) -> None:
    """VMCOREINFO leads to the page tables: the first MiB, the way of others, is not in it."""
    memory = session.memory
    assert isinstance(memory, ElfCore)
    assert memory.regions[0].start >= MIB
    names = [note.name for note in memory.notes]
    assert names.count("CORE") == 1
    assert names.count("VMCOREINFO") == 1
    assert isinstance(session.target, CoreTarget)
    registers = session.target.registers(0)
    assert "cr3" not in registers
    name, _ = session.symbols.lookup(registers["rip"]) or ("", 0)
    assert "crash_kexec" in name


def test_the_crash_is_told(session: Session) -> None:
    crash = session.crash()
    assert crash.message is not None
    assert b"sysrq triggered crash" in crash.message
    stack = session.cpu_stacks()
    assert stack[0].found_by == "registers"
    assert any("sysrq" in (frame.symbol or "") for frame in stack)


def test_every_command(crashed: Crashed, tmp_path: Path) -> None:
    support.check("/proc/vmcore", str(crashed.path), tmp_path)
