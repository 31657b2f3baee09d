"""Guests in every state of their life, and images of them: same commands, same results."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from virtintrospect.driver import Target
from virtintrospect.errors import GuestNotRecognisedError, TargetGoneError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.machine import x86
from virtintrospect.memory import PhysicalMemory
from virtintrospect.memory.image import open_image
from virtintrospect.session import Session, open_session
from virtintrospect.symbols.store import Store

from . import compare
from .lab.domain import Config
from .lab.guest import Guest
from .lab.images import write_avml, write_kdump, write_lime

PROGRAM = str(Path(sys.executable).with_name("virt-introspect"))


def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``virt-introspect``; its exit code must be ``code``."""
    done = subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, timeout=140, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    if code:
        assert len(done.stderr.splitlines()) == 1
    return done


def as_json(*arguments: str) -> Any:
    return json.loads(command("-o", "json", *arguments).stdout)


# -- states of a live guest -----------------------------------------------------------------


def test_guest_in_its_firmware() -> None:
    with Guest(Config(), firmware_only=True) as guest:
        time.sleep(1)
        with open_session(guest.name) as session, pytest.raises(GuestNotRecognisedError):
            _ = session.guest
        line = command("ps", guest.name, code=5).stderr
        assert "firmware" in line
        assert guest.name in command("list").stdout


def test_paused_guest(one_guest: Guest) -> None:
    before = one_guest.snapshot()
    one_guest.domain.suspend()
    try:
        with open_session(one_guest.name) as session:
            ours = session.guest.processes()
        assert command("ps", one_guest.name).stdout
    finally:
        one_guest.domain.resume()
    assert compare.processes(ours, before, one_guest.snapshot()) == []


def test_session_survives_a_reboot(boot: Callable[[Config], Guest]) -> None:
    """After a reboot KASLR has moved everything; the same session finds it again."""
    guest = boot(Config("6.1", cmdline="lab.sleepers=5"))
    with open_session(guest.name) as session:
        first = session.guest
        assert len(first.processes()) > 20
        guest.run("(sleep 1; reboot -f) </dev/null >/dev/null 2>&1 &")
        guest.wait_rebooted()
        second = _again(session, first)
        before = guest.snapshot()
        ours = second.processes()
        assert compare.processes(ours, before, guest.snapshot()) == []


def _again(session: Session, first: object) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            guest = session.guest
        except GuestNotRecognisedError:
            time.sleep(0.2)
            continue
        if guest is not first:
            return guest
        time.sleep(0.2)
    raise AssertionError("the session still believes in the old kernel")


def _look_for_long(session: Session) -> None:
    for _ in range(1000):
        session.guest.processes()


def test_destroyed_guest_is_told(boot: Callable[[Config], Guest]) -> None:
    guest = boot(Config("6.1", cmdline="lab.sleepers=6"))
    with open_session(guest.name) as session:
        assert session.guest.processes()
        guest.destroy()
        with pytest.raises(TargetGoneError):
            _look_for_long(session)
    assert "no domain" in command("ps", guest.name, code=3).stderr


# -- images ---------------------------------------------------------------------------------


#: The first five are QEMU's and libvirt's own work; the others are written by ``lab/images.py``.
IMAGES = (
    "core", "kdump", "raw", "saved", "stream",
    "lime", "avml", "kdump-lzo", "kdump-snappy", "kdump-zstd",
)  # fmt: skip


@pytest.fixture(scope="module")
def images(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A paused guest's truth, its live tables, and its memory in every format."""
    guest = lab.guest(Config("6.12", cmdline="lab.sleepers=7"))
    folder = tmp_path_factory.mktemp("images")
    before = guest.snapshot()
    guest.domain.suspend()
    with open_session(guest.name) as session:
        live = session.guest.processes()
    files = {kind: folder / kind for kind in IMAGES}
    guest.domain.coreDumpWithFormat(str(files["core"]), 0, 0x10)  # VIR_DUMP_MEMORY_ONLY
    guest.domain.coreDumpWithFormat(str(files["kdump"]), 1, 0x10)  # zlib, flattened
    _copy_ram(guest.pid, files["raw"])
    guest.domain.save(str(files["saved"]))
    guest.restore(files["saved"])
    guest.domain.resume()
    saved = files["saved"].read_bytes()
    files["stream"].write_bytes(saved[saved.index(b"QEVM") :])
    after = guest.snapshot()
    with open_image(files["core"]) as memory:
        write_lime(memory, files["lime"])
        write_avml(memory, files["avml"])
        for codec in ("lzo", "snappy", "zstd"):
            write_kdump(memory, files[f"kdump-{codec}"], codec)
    yield {"before": before, "after": after, "live": live, **files}
    for file in files.values():
        file.unlink()


def _copy_ram(pid: int, path: Path) -> None:
    """Below the PCI hole, file offset of the memfd and guest-physical address are the same."""
    folder = Path(f"/proc/{pid}/fd")
    for entry in folder.iterdir():
        if "memory-backend-memfd" in str(entry.readlink()):
            subprocess.run(["cp", "--sparse=always", str(entry), str(path)], check=True)
            return
    raise AssertionError("the guest has no memfd")


@pytest.mark.parametrize("kind", IMAGES)
def test_image_gives_what_the_live_guest_gave(images: dict[str, Any], kind: str) -> None:
    with open_session(str(images[kind])) as session:
        guest = session.guest
        rows = guest.processes()
        assert rows == images["live"]
        assert compare.processes(rows, images["before"], images["after"]) == []
        assert compare.log(guest.dmesg(), images["before"]) == []
        assert compare.modules(guest.modules(), images["before"]) == []
        assert guest.take_problems() == []


@pytest.mark.parametrize("kind", IMAGES)
def test_commands_on_an_image(images: dict[str, Any], kind: str) -> None:
    path = str(images[kind])
    assert len(as_json("ps", path)) == len(images["live"])
    assert as_json("info", f"file://{path}")["os"] == "Linux"
    assert "Linux version" in command("dmesg", path).stdout


def test_truncated_core_tells_the_offset(images: dict[str, Any], tmp_path: Path) -> None:
    cut = tmp_path / "cut.core"
    with images["core"].open("rb") as whole, cut.open("wb") as file:
        file.write(whole.read(1 << 20))
    assert "offset 0x" in command("ps", str(cut), code=4).stderr


def test_every_way_in_finds_the_same_kernel(images: dict[str, Any]) -> None:
    """Trampoline, VMCOREINFO and any page table, on the same memory."""
    with open_image(images["raw"]) as memory:
        ways = [x86.by_trampoline, x86.by_vmcoreinfo, x86.by_any_page_table]
        found = [next(iter(way(memory))) for way in ways]
    assert len({(f.image, f.mode.name) for f in found}) == 1
    assert len({f.found_by for f in found}) == 3


def test_kernel_is_found_without_its_trampoline(images: dict[str, Any], tmp_path: Path) -> None:
    wiped = tmp_path / "wiped.raw"
    subprocess.run(["cp", "--sparse=always", str(images["raw"]), str(wiped)], check=True)
    with wiped.open("r+b") as file:
        file.write(bytes(1 << 20))
    with open_session(str(wiped)) as session:
        guest = session.guest
        assert isinstance(guest, LinuxGuest)
        assert guest.mapping.found_by == "VMCOREINFO"
        assert guest.processes() == images["live"]


class Flicker(PhysicalMemory):
    """An image in which one pointer leads nowhere for a number of looks, as in a live guest."""

    def __init__(self, inner: PhysicalMemory) -> None:
        self.inner = inner
        self.regions = inner.regions
        self.paddr = 0
        self.looks = 0

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:  # noqa: ARG002
        data = self.inner.read(paddr, size)
        at = self.paddr - paddr
        if self.looks and 0 <= at <= size - 8:
            self.looks -= 1
            data = data[:at] + struct.pack("<Q", 0xDEAD_0000_0000) + data[at + 8 :]
        return data


class FlickerTarget(Target):
    """As if it were live, so that rows are confirmed."""

    def __init__(self, memory: Flicker) -> None:
        self._memory = memory

    @property
    def memory(self) -> Flicker:
        return self._memory

    def close(self) -> None:
        """The image belongs to the test."""


@pytest.mark.parametrize(("looks", "confidence"), [(1, 1.0), (2, 1.0), (1000, 0.8)])
def test_torn_row_is_read_again_then_marked(
    images: dict[str, Any], looks: int, confidence: float
) -> None:
    with open_image(images["raw"]) as image:
        memory = Flicker(image)
        guest = Session(FlickerTarget(memory), store=Store(None)).guest
        assert isinstance(guest, LinuxGuest)
        victim = next(row for row in images["live"] if row.name == b"init")
        pointer = victim.address + guest.types.offsetof("task_struct", "real_cred")
        memory.paddr, memory.looks = guest.kernel.translate(pointer), looks
        rows = guest.processes()
    assert [row.pid for row in rows] == [row.pid for row in images["live"]]
    torn = next(row for row in rows if row.pid == victim.pid)
    assert torn.confidence == confidence
    assert torn.uid == (0 if confidence == 1.0 else None)
    assert all(row.confidence == 1.0 for row in rows if row.pid != victim.pid)


def test_kernel_is_found_by_cr3(images: dict[str, Any]) -> None:
    """As a target with registers has it; with KPTI, bit 12 tells the user's half of the tables."""

    class Registers:
        vcpus = 1

        def __init__(self, cr3: int) -> None:
            self.cr3 = cr3

        def registers(self, vcpu: int) -> dict[str, int]:
            return {"cr3": self.cr3} if vcpu == 0 else {}

    with open_session(str(images["raw"])) as session:
        guest, memory = session.guest, session.target.memory
        assert isinstance(guest, LinuxGuest)
        root = guest.kernel.root
        for cr3 in (root, root | 0x8000_0000_0000_0005):
            found = next(x86.by_registers(memory, Registers(cr3)))
            assert (found.image, found.found_by) == (guest.mapping.image, "CR3")


def test_kernel_without_types_is_told(
    images: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Synthetic: no x86-64 kernel of Debian's archive lacks BTF, so its symbols are hidden."""
    from virtintrospect.cli.main import run
    from virtintrospect.symbols.table import Symbols

    def get(self: Symbols, name: str, default: int | None = None) -> int | None:
        return None if name.endswith("_BTF") else next(iter(self.all(name)), default)

    monkeypatch.setattr(Symbols, "get", get)
    monkeypatch.setenv("VIRTINTROSPECT_CACHE", str(tmp_path / "cache"))
    assert run(["ps", str(images["raw"])]) == 5
    error = capsys.readouterr().err.splitlines()[-1]
    assert "BTF" in error
    assert "Linux version 6.12" in error
    assert "CONFIG_DEBUG_INFO_BTF" in error


# -- the command on a live guest ------------------------------------------------------------


def test_list_names_the_kernel(one_guest: Guest) -> None:
    rows = {row["name"]: row for row in as_json("list")}
    row = rows[one_guest.name]
    assert row["kernel"] == one_guest.release
    assert row["uuid"] == one_guest.uuid
    assert row["state"] == "running"
    assert row["os"] == "Linux"
    assert one_guest.name in command("list", "--all").stdout


@pytest.mark.parametrize("by", ["name", "uuid", "id"])
def test_domain_by_name_uuid_or_id(one_guest: Guest, by: str) -> None:
    target = {
        "name": one_guest.name,
        "uuid": one_guest.uuid,
        "id": str(one_guest.domain.ID()),
    }[by]
    assert as_json("info", target)["release"] == one_guest.release


def test_hostile_names_are_escaped_in_every_format(one_guest: Guest) -> None:
    for output in ("table", "json", "jsonl", "csv"):
        text = command("-o", output, "ps", one_guest.name, "--threads").stdout
        assert all(character.isprintable() or character == "\n" for character in text)
        assert "[31mred" in text
    names = {row["name"] for row in as_json("ps", one_guest.name)}
    assert {r"\x1b[31mred", r"line\x0afeed", "a) S 1 (b", r"\xff\xfe\x80raw"} <= names


def test_json_of_ps_has_the_fields_of_the_contract(one_guest: Guest) -> None:
    contract = (
        "pid tid parent name state uid gid euid egid threads nice priority start_time user_time "
        "system_time resident_size total_size path cmdline cwd root cgroup_path kernel_thread "
        "address confidence"
    )
    rows = as_json("ps", one_guest.name)
    init = next(row for row in rows if row["pid"] == 1)
    assert [name for name in init if name in contract.split()] == contract.split()
    kernel_thread = next(row for row in rows if row["pid"] == 2)
    missing = set(contract.split()) - set(kernel_thread)
    assert missing == {"resident_size", "total_size", "path", "cmdline"}


def test_ps_tree(one_guest: Guest) -> None:
    lines = command("ps", one_guest.name, "--tree", "--columns", "pid,name").stdout.splitlines()
    kthreadd = next(i for i, line in enumerate(lines) if line.split()[1:2] == ["kthreadd"])
    assert re.match(r" *2  kthreadd", lines[kthreadd])
    assert re.match(r" *3    \S", lines[kthreadd + 1])


def test_symbols_types_translate_read(one_guest: Guest) -> None:
    name = one_guest.name
    (task,) = as_json("symbols", name, "init_task")
    (back,) = as_json("symbols", name, task["address"])
    assert back["name"] == "init_task"
    assert any(row["name"] == "tcp_sendmsg" for row in as_json("symbols", name, "tcp_send*"))
    members = {row["name"]: row for row in as_json("types", name, "task_struct")}
    assert members["comm"]["type"] == "char[16]"
    walk = as_json("translate", name, "init_task")
    assert walk["vaddr"] == task["address"]
    assert walk["present"] is True
    comm = int(task["address"], 16) + members["comm"]["offset"]
    lines = as_json("read", name, hex(comm), "-n", "16")
    assert bytes.fromhex("".join(line["data"] for line in lines)).startswith(b"swapper")
    physical = int(walk["paddr"], 16) + members["comm"]["offset"]
    assert (
        as_json("read", name, hex(physical), "--physical", "-n", "16")[0]["data"]
        == (lines[0]["data"])
    )
    raw = subprocess.run(
        [PROGRAM, "read", name, "linux_banner", "--raw", "-n", "13"],
        capture_output=True,
        check=True,
    )
    assert raw.stdout == b"Linux version"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["symbols", "{}", "no_such_symbol_at_all"], 1),
        (["types", "{}", "no_such_type"], 1),
        (["types", "{}", "net_bridge", "--module", "nothing"], 3),
        (["translate", "{}", "zzz"], 1),
        (["translate", "{}", "0xzz"], 2),
        (["read", "{}", "0x10"], 4),
        (["read", "{}", "linux_banner", "-n", "many"], 2),
        (["read", "{}", "linux_banner", "-n", "99999999999999"], 2),
        (["read", "{}", "linux_banner", "-n", "200000000"], 4),
        (["read", "{}", "0x1000", "--pid", "2"], 3),
        (["read", "{}", "0x1000", "--pid", "1", "--physical"], 2),
        (["read", "{}", "0xffffffffffff0000", "--physical"], 4),
        (["ps", "no-such-domain"], 3),
        (["ps", "00000000-0000-0000-0000-000000000000"], 3),
    ],
)
def test_mistakes_are_one_line_each(one_guest: Guest, arguments: list[str], code: int) -> None:
    command(*[argument.format(one_guest.name) for argument in arguments], code=code)


def test_completion_offers_running_domains(one_guest: Guest) -> None:
    prefix = one_guest.name[:-2]
    done = subprocess.run(
        [PROGRAM], capture_output=True, text=True, check=True,
        env=os.environ | {
            "_VIRT_INTROSPECT_COMPLETE": "bash_complete",
            "COMP_WORDS": f"virt-introspect ps {prefix}", "COMP_CWORD": "2",
        },
    )  # fmt: skip
    assert f"plain,{one_guest.name}" in done.stdout.splitlines()


def test_user_without_rights_is_told(one_guest: Guest) -> None:
    """In one process, since that user may not even be able to start this Python."""
    program = (
        "import os, sys\nfrom virtintrospect.cli.main import run\n"
        "sys.stdout = open(os.devnull, 'w')\n"
        f"arguments = ['-c', 'qemu:///system', 'ps', {one_guest.name!r}]\n"
        "assert run(arguments) == 0\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(run(arguments))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_broken_cache_is_made_anew(one_guest: Guest, tmp_path: Path) -> None:
    environment = os.environ | {"VIRTINTROSPECT_CACHE": str(tmp_path)}

    def ps() -> str:
        done = subprocess.run(
            [PROGRAM, "ps", one_guest.name, "--columns", "pid,name"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    assert "init" in ps()
    (profile,) = tmp_path.glob("*.profile")
    whole = profile.read_bytes()
    for damage in (b"", whole[:5000], b"\xff" * len(whole), whole[:100] + b"\0" + whole[101:]):
        profile.write_bytes(damage)
        assert "init" in ps()


def test_attach_reads_the_same_however_large_the_guest(boot: Callable[[Config], Guest]) -> None:
    """Memory that an attach reads, with a warm cache, does not grow with the guest's RAM."""
    reads = []
    for ram in (512, 2048):
        guest = boot(Config("6.1", ram_mib=ram, cmdline="lab.sleepers=5"))
        with open_session(guest.name) as session:
            assert session.guest.processes()
            reads.append(len(list(x86.by_trampoline(session.target.memory))))
    assert reads == [1, 1]
