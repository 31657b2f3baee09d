"""The audit rules: nothing on clean guests, and what was planted by just the right rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtintrospect.cli.main import run
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight.checks import NOTE, RULES, Options, check
from virtintrospect.insight.checks.allowed import allowed
from virtintrospect.model import Finding
from virtintrospect.session import open_session

from .lab import apt
from .lab.domain import Config
from .lab.guest import Guest
from .lab.kernels import kernel
from .lab.planted import KERNELS_OF_IT, planted
from .test_stress import stressed

#: What the lab's own workload has that a rule must find.
WORKLOAD = {("deleted-executable", b"/tmp/deleted-program")}


#: A program's path, for the shell: what a terminal must not see.
GONE = """"$(printf '/tmp/g\\033[5mne')\""""


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rules look, however busy the machine is."""
    monkeypatch.setattr("virtintrospect.insight.checks._SECONDS", 1800.0)


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


@pytest.mark.once_a_kernel(pti=False)
def test_clean_guests(linux: LinuxGuest, guest: Guest) -> None:
    """On every kernel and architecture of the matrix; other tests may have left processes."""
    found = medium(check(linux))
    assert found >= WORKLOAD
    assert {rule for rule, _ in found - WORKLOAD} <= {"deleted-executable", "root-child"}
    notes = [problem.what for problem in linux.take_problems() if NOTE in problem.what]
    expected = []
    if guest.config.arch != "x86_64":
        expected = [f"{NOTE}unknown-code: only kernels for x86-64 are looked at"]
    elif "pack_list" not in linux.symbols:  # before 5.17
        expected = [f"{NOTE}unknown-code: this kernel does not list the code of classic BPF"]
    assert notes == expected


@pytest.fixture(params=KERNELS_OF_IT)
def owned(request: pytest.FixtureRequest) -> Iterator[tuple[Guest, LinuxGuest]]:
    """A guest of this test's own, with the planted module not yet loaded."""
    config = Config(
        request.param, pti=False, cmdline="lab.sleepers=3 lab.oddities=0 no_timer_check"
    )
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
    sleeper = (
        "sleep 100000 >/dev/null 2>&1 & until grep -q '(sleep) S' /proc/$!/stat; do usleep 50000;"
        "done; echo $!"
    )
    hidden, sharing = (int(guest.run(sleeper)) for _ in range(2))
    try:
        guest.put("/planted.ko", planted(guest.config.kernel))
    except apt.NoSuchPackageError as error:
        pytest.skip(str(error))
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
    unknown = next(one.subject for one in findings if one.rule == "unknown-code")
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
        ("unknown-code", unknown),
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
def odd(one_guest: Guest) -> Iterator[Guest]:
    """A guest with a program that behaves as malware does, and without it at the end."""
    one_guest.install("odd", "/odd")
    yield one_guest
    one_guest.run("killall odd 4 nc; kill $(cat /tmp/said)", check=False)
    one_guest.run("rm -f /odd /etc/ld.so.preload")


def _start(guest: Guest, command: str) -> int:
    """Start a program that says its number once it is as it will be."""
    said = "/tmp/said"
    script = f"rm -f {said}; {command} >{said} 2>&1 & until grep -q . {said}; do sleep 1; done"
    return int(guest.run(f"{script}; cat {said}", 60))


def test_programs_are_found(odd: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """Code in memory, programs that are gone, root from nowhere, a library put before others."""
    with open_session(odd.name) as session:
        # Other tests may have left something.
        options = Options(listening=(allowed("tcp:22-3000"),), baseline=session.baseline())
        before = medium(session.check(options=options))
        writable, memory, child = (
            _start(odd, f"/odd {how}") for how in ("writable", "memory", "child")
        )
        odd.run(f"cp /odd {GONE}")
        gone = _start(odd, f"{GONE} stay")
        odd.run(f"rm {GONE}")
        _start(odd, "LD_PRELOAD=/tmp/evil.so /odd")
        odd.put("/etc/ld.so.preload", b"# comment\n/lib/hidden.so\n")
        for port in (4444, 2222):
            listens = f"netstat -ltn 2>/dev/null | grep -q :{port}"
            odd.run(f"nc -l -p {port} >/dev/null 2>&1 & until {listens}; do usleep 100000; done")
        found = session.check(options=options)
    assert medium(found) - before == {
        ("writable-code", b"process %d (odd)" % writable),
        ("deleted-executable", b"/memfd:kworker/0:9"),
        ("deleted-executable", b"/tmp/g\x1b[5mne"),
        ("root-child", b"process %d (odd)" % child),
        ("preload", b"LD_PRELOAD=/tmp/evil.so"),
        ("preload", b"/etc/ld.so.preload"),
        ("listening", b"tcp [::]:4444"),
        ("drift", b"listening socket tcp [::]:4444"),
        ("drift", b"listening socket tcp [::]:2222"),
    }
    by_subject = {one.subject: one for one in found if one.rule == "deleted-executable"}
    assert by_subject[b"process %d (4)" % memory].severity == "high"

    command = ["check", odd.name, "--no-daemon", "--rule", "deleted-executable"]
    assert run([*command, "-o", "json"]) == 6
    rows = json.loads(capsys.readouterr().out)
    (row,) = (row for row in rows if f"pid={gone} " in row["evidence"])
    assert row["detail"] == r"its program was deleted: /tmp/g\x1b[5mne"
    assert row.keys() == {"rule", "severity", "subject", "detail", "evidence", "remedy"}
    assert run([*command, "--severity", "critical"]) == 0
    assert capsys.readouterr().out == "no findings\n"


def test_baseline(one_guest: Guest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written down is found again, and a guest that was changed is not the same."""
    path = tmp_path / "baseline.json"
    command = ["check", one_guest.name, "--rule", "drift", "-o", "json"]
    assert run([*command, "--save-baseline", str(path)]) == 0
    then = json.loads(path.read_text())
    modules = {line.split()[0] for line in one_guest.get("/proc/modules").decode().splitlines()}
    assert set(then["modules"]) == modules
    assert then["release"] == one_guest.release
    then["modules"].remove("bridge")
    then["modules"].append("gone")
    then["arguments"] += " quiet"
    then["syscalls"][0] = "sys_call_table[0] something+0x0"
    path.write_text(json.dumps(then))
    capsys.readouterr()
    assert run([*command, "--severity", "medium", "--baseline", str(path)]) == 6
    found = {row["subject"]: row["severity"] for row in json.loads(capsys.readouterr().out)}
    assert found == {
        "module bridge": "medium",
        "its arguments": "medium",
        "system call sys_call_table[0] something+0x0": "high",
        "system call sys_call_table[0] __x64_sys_read+0x0": "high",
    }


def test_image_of_another_kernel(one_guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(kernel("6.1").vmlinuz)
    command = ["check", one_guest.name, "--rule", "kernel-text", "--kernel-image"]
    assert run([*command, image]) == 0
    assert "note: not checked: kernel-text: none of the images" in capsys.readouterr().err
    assert run([*command, str(kernel("6.12").vmlinuz)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.once_a_kernel(pti=False, arch="x86_64")
def test_a_busy_guest_is_clean(linux: LinuxGuest, guest: Guest) -> None:
    """Processes that come and go as fast as they can are in no book by halves."""
    if guest.config.kernel not in ("5.10", "6.12"):
        pytest.skip("only on 5.10 and 6.12")
    before = medium(check(linux))
    rules = [rule.id for rule in RULES if rule.id != "deleted-executable"]
    largest = guest.get("/proc/sys/kernel/pid_max")
    with stressed(guest):
        for _ in range(3):
            assert medium(check(linux, rules)) <= before
    guest.run(f"echo {int(largest)} > /proc/sys/kernel/pid_max")
