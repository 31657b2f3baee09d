"""The audit rules: nothing on clean guests, and what was planted by just the right rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight.checks import NOTE, Options, check
from virtintrospect.insight.checks.allowed import allowed
from virtintrospect.model import Finding
from virtintrospect.session import open_session

from .lab.domain import Config
from .lab.guest import Guest
from .lab.kernels import kernel
from .lab.planted import KERNELS_OF_IT, planted

#: What the lab's own workload has that a rule must find.
WORKLOAD = {("deleted-executable", b"/tmp/deleted-program")}


def medium(findings: list[Finding]) -> set[tuple[str, bytes]]:
    """Findings of at least medium severity: rule, and subject or what is behind it."""
    return {
        (
            one.rule,
            one.detail.partition(b": ")[2] if one.rule == "deleted-executable" else one.subject,
        )
        for one in findings
        if one.severity in ("medium", "high", "critical")
    }


@pytest.mark.once_a_kernel
def test_clean_guests(linux: LinuxGuest) -> None:
    """On every kernel and architecture of the matrix; other tests may have left processes."""
    found = medium(check(linux))
    assert found >= WORKLOAD
    assert {rule for rule, _ in found - WORKLOAD} <= {"deleted-executable", "root-child"}
    notes = [problem.what for problem in linux.take_problems()]
    assert not [note for note in notes if note.startswith(NOTE)]


@pytest.fixture(params=KERNELS_OF_IT)
def owned(request: pytest.FixtureRequest) -> Iterator[tuple[Guest, LinuxGuest]]:
    """A guest of this test's own, with the planted module not yet loaded."""
    config = Config(request.param, pti=False, cmdline="lab.sleepers=3 lab.oddities=0")
    with Guest(config) as guest, open_session(guest.name) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        yield guest, linux


def kallsyms(guest: Guest) -> dict[str, int]:
    """The guest's own symbols."""
    lines = guest.get("/proc/kallsyms").decode().splitlines()
    return {name: int(value, 16) for value, _, name, *_ in map(str.split, lines)}


def lsm_place(linux: LinuxGuest) -> int:
    """Address of the pointer to a hook that nobody calls in these guests: settime."""
    heads = "security_hook_heads"
    if heads in linux.symbols:
        head = linux.symbols.address(heads) + linux.types.offsetof(heads, "settime")
        entry = linux.kernel.read_pointer(head)
    else:
        table = linux.symbols.address("static_calls_table")
        call = table + linux.types.offsetof("lsm_static_calls_table", "settime")
        entry = linux.kernel.read_pointer(call + linux.types.offsetof("lsm_static_call", "hl"))
    return entry + linux.types.offsetof("security_hook_list", "hook")


def test_a_rootkit_is_found(owned: tuple[Guest, LinuxGuest]) -> None:
    """A module that hides itself and a process, and hooks all that can be hooked."""
    guest, linux = owned
    options = Options(images=(kernel(guest.config.kernel).vmlinuz,))
    assert not medium(check(linux, options=options))
    symbols = kallsyms(guest)
    hidden, sharing = (int(guest.run("sleep 100000 >/dev/null 2>&1 & echo $!")) for _ in range(2))
    guest.put("/planted.ko", planted(guest.config.kernel))
    parameters = {
        "hide_pid": hidden,
        "share_pid": sharing,
        "syscall_number": 180,
        "syscall_table": symbols["sys_call_table"],
        "vector": 0xF8,
        "idt": symbols["idt_table"],
        "lsm_place": lsm_place(linux),
        "patched": symbols["kernel_halt"] + 24,
        "traced": symbols["vfs_fallocate"],
        "probed": "vfs_fsync_range",
        "packets": 1,
        "hide": 1,
    }
    words = " ".join(f"{name}={value}" for name, value in parameters.items())
    guest.run(f"insmod /planted.ko {words}")
    assert b"planted" not in guest.get("/proc/modules")
    assert hidden not in {process.pid for process in linux.processes()}

    findings = check(linux, options=options)
    tracer = next(one.subject for one in findings if one.rule == "ftrace-hook")
    probe = next(one.subject for one in findings if one.rule == "kprobe")
    assert medium(findings) == {
        ("hidden-process", b"process %d (sleep)" % hidden),
        ("hidden-module", b"module planted"),
        ("syscall-table", b"sys_call_table[180]"),
        ("interrupt-table", b"interrupt 0xf8"),
        ("lsm-hook", b"LSM hook settime"),
        ("netfilter-hook", b"netfilter ipv4 0 of namespace %d, hook 0" % _namespace(guest)),
        ("shared-credentials", b"process %d (sleep)" % sharing),
        ("ftrace-hook", tracer),
        ("kprobe", probe),
        ("kernel-text", b"code of kernel_halt"),
        ("taint", b"taint O"),
        ("taint", b"taint E"),
    }
    assert b"vfs_fsync_range" in probe
    (module,) = (one for one in findings if one.rule == "hidden-module")
    assert b"missing=list,sysfs seen=address-tree" in module.evidence
    (process,) = (one for one in findings if one.rule == "hidden-process")
    assert b"missing=task-list seen=pid-table,cgroups,children" in process.evidence
    assert f"pid={hidden} ".encode() in process.evidence


def _namespace(guest: Guest) -> int:
    text = guest.run("readlink /proc/1/ns/net").decode()
    return int(re.findall(r"\d+", text)[0])


@pytest.fixture
def odd(boot: Callable[[Config], Guest]) -> Guest:
    """A guest with programs that behave as malware does."""
    guest = boot(Config("6.12", pti=False, cmdline="lab.sleepers=3 lab.oddities=0"))
    if guest.execute("test -e /odd").status:
        guest.install("odd", "/odd")
    return guest


def _start(guest: Guest, command: str) -> int:
    """Start a program that says its number once it is as it will be."""
    said = "/tmp/said"
    script = f"rm -f {said}; {command} >{said} 2>&1 & until grep -q . {said}; do sleep 1; done"
    return int(guest.run(f"{script}; cat {said}", 60))


def test_programs_are_found(odd: Guest) -> None:
    """Code in memory, programs that are gone, root from nowhere, a library put before others."""
    with open_session(odd.name) as session:
        before = medium(session.check())
        assert {rule for rule, _ in before} <= {"taint"}
        odd.run("cp /odd /tmp/gone")
        writable, memory, child = (
            _start(odd, f"/odd {how}") for how in ("writable", "memory", "child")
        )
        gone = _start(odd, "/tmp/gone stay")
        odd.run("rm /tmp/gone")
        odd.run("LD_PRELOAD=/tmp/evil.so sleep 100000 >/dev/null 2>&1 &")
        odd.put("/etc/ld.so.preload", b"# comment\n/lib/hidden.so\n")
        odd.run("nc -l -p 4444 >/dev/null 2>&1 &")
        odd.run("nc -l -p 2222 >/dev/null 2>&1 &")
        found = session.check(options=Options(listening=(allowed("tcp:22-3000"),)))
        after = medium(found) - before
    assert after == {
        ("writable-code", b"process %d (odd)" % writable),
        ("deleted-executable", b"/memfd:kworker/0:9"),
        ("deleted-executable", b"/tmp/gone"),
        ("root-child", b"process %d (odd)" % child),
        ("preload", b"LD_PRELOAD=/tmp/evil.so"),
        ("preload", b"/etc/ld.so.preload"),
        ("listening", b"tcp [::]:4444"),
    }
    subjects = {one.subject for one in found if one.rule == "deleted-executable"}
    assert {b"process %d (4)" % memory, b"process %d (gone)" % gone} == subjects
