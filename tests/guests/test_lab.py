"""The lab itself tells the truth."""

from __future__ import annotations

import struct

import pytest

from .lab.guest import Guest, GuestError
from .lab.nested import INNER_PID_FILE, Nested
from .lab.truth import Stat


def test_boots_what_was_asked_for(guest: Guest) -> None:
    snapshot = guest.snapshot()
    config = guest.config
    assert snapshot.file("/proc/sys/kernel/osrelease").decode().strip() == guest.release
    assert b"nokaslr" not in snapshot.file("/proc/cmdline")
    if config.arch == "x86_64":
        flags = guest.run("grep -m1 ^flags /proc/cpuinfo").split()
        assert (b"la57" in flags) == (config.levels == 5)
    said = (b"page tables isolation: enabled", b"detected: kernel page table isolation")
    isolated = any(text in r.text.lower() for r in snapshot.log for text in said)
    assert isolated == config.pti
    assert ("type='memfd'" in guest.xml) == (config.backing == "memfd")
    assert "tainted" not in guest.log


def test_workload_is_whole(guest: Guest) -> None:
    assert b"lab: ready" in guest.console.read_bytes()
    complaints = [
        line
        for line in guest.console.read_bytes().splitlines()
        if line.startswith(b"lab: ") and line != b"lab: ready"
    ]
    assert not complaints
    snapshot = guest.snapshot()
    processes = snapshot.processes.values()
    assert {p.stat.state for p in processes} >= set("RSDTtZI")
    comms = {p.stat.comm for p in processes}
    assert comms >= {b"\x1b[31mred", b"line\nfeed", b"a) S 1 (b", b"\xff\xfe\x80raw", b"sleeper-59"}
    assert any((p.exe or b"").endswith(b" (deleted)") for p in processes)
    assert snapshot.modules["bridge"].refcount == 0
    assert set(snapshot.modules["llc"].used_by) == {"bridge", "stp"}
    texts = [record.text for record in snapshot.log]
    assert b"lab: escapes \x1b[31mred\x1b[0m bell \a tab \t backslash \\ end" in texts
    assert b"lab: first line\nlab: second line\nlab: third line" in texts
    assert any(text.startswith(b"lab: long LLL") for text in texts)


def test_snapshot_equals_what_programs_in_the_guest_see(guest: Guest) -> None:
    snapshot = guest.snapshot()
    stable = {pid for pid, p in snapshot.processes.items() if b"agent" not in p.stat.comm}
    listed = {int(pid) for pid in guest.run("cd /proc; echo [0-9]*").split()}
    workers = {pid for pid in stable if not snapshot.processes[pid].kernel_thread}
    assert workers <= listed
    for pid in sorted(workers)[:20]:
        process = snapshot.processes[pid]
        assert Stat.parse(guest.get(f"/proc/{pid}/stat")).comm == process.stat.comm
        assert guest.get(f"/proc/{pid}/cmdline") == process.cmdline
    threads = next(p for p in snapshot.processes.values() if p.stat.comm == b"threads").threads
    assert sorted(t.stat.comm for t in threads.values()) == [
        b"\x1b[5mblink", b"paren) R (end", b"threads", b"worker-one", b"worker-two",
    ]  # fmt: skip


def test_bytes_cross_the_channel_unchanged(one_guest: Guest) -> None:
    content = bytes(range(256)) * 5000
    one_guest.put("/tmp/bytes", content, 0o600)
    assert one_guest.get("/tmp/bytes") == content
    assert one_guest.run("stat -c %a /tmp/bytes; printf '\\377\\0'") == b"600\n\xff\0"
    assert one_guest.execute("echo out; echo err >&2; exit 3").status == 3
    one_guest.run("rm /tmp/bytes")


def test_a_late_answer_is_none_to_the_next_question(one_guest: Guest) -> None:
    with pytest.raises(GuestError, match="does not answer"):
        one_guest._ask("R", struct.pack("<I", 60) + b"sleep 3; echo late", 1)
    assert one_guest.run("echo next") == b"next\n"
    assert one_guest.run("echo another") == b"another\n"


def test_nested_guest_is_a_true_kvm_guest(nested: Nested) -> None:
    descriptors = nested.run_nested(f"ls -l /proc/$(cat {INNER_PID_FILE})/fd")
    assert b"kvm-vcpu:0" in descriptors.stdout
    inner = nested.inner.snapshot()
    assert any(b"Hypervisor detected: KVM" in record.text for record in inner.log)
    assert any(p.stat.comm == b"sleeper-4" for p in inner.processes.values())
