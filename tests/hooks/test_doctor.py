"""``virt-introspect doctor``: its checks on hosts made of files, its change on real domains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.guests.lab.private import Private
from virtintrospect.domain import Domain
from virtintrospect.driver import driver_for
from virtintrospect.host import Host
from virtintrospect.plugin import backing, confinement, doctor
from virtintrospect.plugin.backing import CannotShareError
from virtintrospect.plugin.check import Check
from virtintrospect.plugin.daemons import Daemon
from virtintrospect.plugin.hooks import Hooks
from virtintrospect.plugin.source import Places

PROGRAM = str(Path(sys.executable).with_name("virt-introspect"))
DAEMON = Daemon("virtqemud", 77, 1, 0.0)


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _confinement(root: Path, files: dict[str, str]) -> dict[str, Check]:
    _write(root, files)
    return {check.check: check for check in confinement.checks([DAEMON], root)}


ALL, NONE = {"proc/self/status": "CapEff:\tffffffffffffffff\n"}, {"proc/self/status": "CapEff:\t0"}


def test_host_without_confinement(tmp_path: Path) -> None:
    found = _confinement(tmp_path, ALL)
    assert {check.status for check in found.values()} == {"ok"}
    assert set(found) == {"capabilities", "ptrace", "apparmor", "selinux"}


@pytest.mark.parametrize(
    ("scope", "capabilities", "status"),
    [("0", ALL, "ok"), ("1", ALL, "ok"), ("2", ALL, "ok"), ("3", ALL, "problem"),
     ("0", NONE, "ok"), ("1", NONE, "warning"), ("2", NONE, "warning"), ("3", NONE, "problem")],
)  # fmt: skip
def test_yama(tmp_path: Path, scope: str, capabilities: dict[str, str], status: str) -> None:
    found = _confinement(tmp_path, capabilities | {"proc/sys/kernel/yama/ptrace_scope": scope})
    assert found["ptrace"].status == status
    assert found["capabilities"].status == ("ok" if capabilities is ALL else "warning")


def test_one_capability_is_not_enough(tmp_path: Path) -> None:
    found = _confinement(tmp_path, {"proc/self/status": f"CapEff:\t{1 << 19:016x}\n"})
    assert "CAP_DAC_READ_SEARCH" in found["capabilities"].detail
    assert "CAP_SYS_PTRACE" not in found["capabilities"].detail


ARMOUR = {"sys/module/apparmor/parameters/enabled": "Y\n"}


@pytest.mark.parametrize(
    ("current", "profile", "status"),
    [("unconfined", None, "ok"), ("virtqemud (complain)", "", "ok"),
     ("virtqemud (enforce)", "  /etc/libvirt/hooks/** rmix,\n", "ok"),
     ("virtqemud (enforce)", "  # /etc/libvirt/hooks/** rmix,\n", "problem"),
     ("virtqemud (enforce)", "  /etc/libvirt/hooks/** r,\n", "problem"),
     ("virtqemud (enforce)", None, "note")],
)  # fmt: skip
def test_apparmor(tmp_path: Path, current: str, profile: str | None, status: str) -> None:
    files = ALL | ARMOUR | {"proc/77/attr/current": current}
    if profile is not None:
        files |= {"etc/apparmor.d/usr.sbin.virtqemud": "profile virtqemud {\n" + profile + "}\n"}
    assert _confinement(tmp_path, files)["apparmor"].status == status


def test_debians_own_profile_lets_hooks_run(tmp_path: Path) -> None:
    path = Path("/etc/apparmor.d/usr.sbin.libvirtd")
    if not path.exists():
        pytest.skip("no AppArmor profile of libvirtd here")
    files = ALL | ARMOUR | {"proc/77/attr/current": "libvirtd (enforce)",
                            "etc/apparmor.d/usr.sbin.virtqemud": path.read_text()}  # fmt: skip
    assert _confinement(tmp_path, files)["apparmor"].status == "ok"


@pytest.mark.parametrize(
    ("enforce", "context", "status"),
    [("1", "system_u:system_r:virtqemud_t:s0", "warning"),
     ("1", "system_u:system_r:virtd_t:s0-s0:c0.c1023", "ok"),
     ("0", "system_u:system_r:virtqemud_t:s0", "ok")],
)  # fmt: skip
def test_selinux(tmp_path: Path, enforce: str, context: str, status: str) -> None:
    files = {"sys/fs/selinux/enforce": enforce, "proc/77/attr/current": context + "\0"}
    assert _confinement(tmp_path, ALL | files)["selinux"].status == status


# -- our own parts --------------------------------------------------------------------------


def _ours(root: Path) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = {}
    hooks = Hooks(root, places=Places())
    for check in (*doctor._hooks(hooks), doctor._our_daemon(hooks), *doctor._spool(hooks)):
        found.setdefault(check.check, []).append(check)
    return found


def test_hooks_on_the_way_of_libvirt(tmp_path: Path) -> None:
    _write(tmp_path, {"etc/libvirt/hooks/qemu.d/x~": "", "etc/libvirt/hooks/qemu": ""})
    (tmp_path / "etc/libvirt/hooks/qemu.d/x~").chmod(0o755)
    statuses = {Path(c.subject).name: c.status for c in _ours(tmp_path)["hooks"]}
    assert statuses == {"qemu.d": "note", "x~": "problem", "qemu": "warning"}


def test_spool_and_daemon(tmp_path: Path) -> None:
    found = _ours(tmp_path)
    assert found["daemon"][0].status == "note"
    assert "spool" not in found
    spool = tmp_path / "var/lib/virtintrospect/spool"
    spool.mkdir(parents=True)
    assert _ours(tmp_path)["spool"][0].status == "ok"
    for number in range(1000):
        (spool / f"{number}-1.json").touch()
    assert _ours(tmp_path)["spool"][0].status == "warning"
    (tmp_path / "run/virtintrospect").mkdir(parents=True)
    (tmp_path / "run/virtintrospect/daemon.sock").touch()
    assert _ours(tmp_path)["daemon"][0].status == "problem"


def test_cache_that_others_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTINTROSPECT_CACHE", str(tmp_path / "cache"))
    assert doctor._cache().status == "ok"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert doctor._cache().status == "problem"
    (tmp_path / "cache").chmod(0o700)
    assert doctor._cache().status == "ok"


# -- the change to shared RAM ---------------------------------------------------------------

XML = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web01</name>
  <metadata>
    <x:note xmlns:x="urn:x">&lt;memoryBacking/&gt; is <x:b>not</x:b> here</x:note>
  </metadata>
  <memory unit='KiB'>1048576</memory>
BACKING  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
  <cpu mode='host-model'>
    <numa>
      <cell id='0' cpus='0' memory='524288' unit='KiB'CELL/>
    </numa>
  </cpu>
  <devices>
    <graphics type='vnc' passwd='secret'/>
  </devices>
</domain>
"""


def _xml(inside: str = "", cell: str = "") -> str:
    element = f"  <memoryBacking>\n{inside}  </memoryBacking>\n" if inside else ""
    return XML.replace("BACKING", element).replace("CELL", cell)


MEMFD = "    <source type='memfd'/>\n"
SHARED = "    <access mode='shared'/>\n"
HUGE = "    <hugepages>\n      <page size='2048' unit='KiB'/>\n    </hugepages>\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", MEMFD + SHARED),
        (MEMFD, MEMFD + SHARED),
        ("    <access mode='private'/>\n", SHARED + MEMFD),
        ("    <source type='anonymous'/>\n", MEMFD + SHARED),
        ("    <source type='file'/>\n", "    <source type='file'/>\n" + SHARED),
        (HUGE, HUGE + SHARED),
        ("    <nosharepages/>\n    <locked/>\n    <discard/>\n",
         "    <nosharepages/>\n    <locked/>\n    <discard/>\n" + MEMFD + SHARED),
    ],
)  # fmt: skip
def test_what_changes_in_the_xml(before: str, after: str) -> None:
    assert not backing.is_shared(_xml(before))
    assert backing.with_shared_ram(_xml(before)) == _xml(after)
    assert backing.is_shared(_xml(after))


def test_numa_cells_are_shared_too() -> None:
    private, shared = _xml("", " memAccess='private'"), _xml(MEMFD + SHARED, " memAccess='shared'")
    assert backing.with_shared_ram(private) == shared
    assert not backing.is_shared(_xml(MEMFD + SHARED, " memAccess='private'"))
    assert backing.is_shared(_xml(MEMFD, " memAccess='shared'"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("type='kvm'", "type='lxc'", "lxc"),
        ("<devices>", "<launchSecurity type='sev'/>\n  <devices>", "confidential"),
        ("pc-q35-7.2", "microvm", "microvm"),
        ("arch='x86_64' machine='pc-q35-7.2'", "arch='aarch64' machine='raspi3b'", "raspi3b"),
        ("  <vcpu", "\n<vcpu", "vcpu"),
        ("</domain>", "", "parsed"),
    ],
)
def test_where_it_makes_no_sense(old: str, new: str, says: str) -> None:
    with pytest.raises(CannotShareError, match=says):
        backing.with_shared_ram(_xml().replace(old, new, 1))


def test_an_element_of_that_name_in_metadata_is_not_taken_for_it() -> None:
    trap = "  <memoryBacking>\n  </memoryBacking>\n"
    xml = _xml().replace("    <x:note", trap + "    <x:note")
    with pytest.raises(CannotShareError, match="not understood"):
        backing.with_shared_ram(xml)


# -- on a real libvirtd ---------------------------------------------------------------------


def _run(private: Private, *arguments: str, code: int = 0, text: str = "") -> Any:
    done = private.run(
        PROGRAM, "-c", private.uri, *arguments,
        capture_output=True, text=True, timeout=120, check=False, input=text,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def _checks(private: Private, *arguments: str, code: int = 0) -> list[dict[str, str]]:
    found = json.loads(_run(private, "doctor", "-o", "json", *arguments, code=code).stdout)
    assert isinstance(found, list)
    return found


def _memory(private: Private, name: str) -> dict[str, str]:
    (check,) = [c for c in _checks(private, name) if c["check"] == "memory"]
    return check


def test_from_anonymous_to_shared_ram(private: Private) -> None:
    """Define, fix, start: the memory of the domain is mapped then, and nothing else changed."""
    name = f"vi-doctor-{os.urandom(4).hex()}"
    connection = private.connect()
    domain = connection.defineXML(f"""
<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><controller type='usb' model='none'/>
<graphics type='vnc' passwd='s3cr3tpw'><listen type='socket'/></graphics></devices></domain>""")
    assert _memory(private, name)["status"] == "note"
    domain.create()
    before = _memory(private, name)
    assert before["detail"].startswith("kvm-process")
    assert before["advice"] == f"virt-introspect doctor --fix-memory-backing {name}"

    asked = _run(private, "doctor", "--fix-memory-backing", name, code=130, text="n\n")
    assert "+    <source type='memfd'/>" in asked.stdout
    assert "s3cr3tpw" not in asked.stdout
    assert _memory(private, name) == before
    done = _run(private, "doctor", "--fix-memory-backing", name, text="y\n")
    assert "at its next start" in done.stdout
    again = _run(private, "doctor", "--fix-memory-backing", name, "--yes")
    assert "already" in again.stdout
    assert "next start" in _memory(private, name)["advice"]

    domain.destroy()
    assert "will have shared RAM" in _memory(private, name)["detail"]
    domain.create()
    assert _memory(private, name)["detail"].startswith("kvm-mmap")
    assert "s3cr3tpw" in domain.XMLDesc(1), "VIR_DOMAIN_XML_SECURE: the password is still there"
    with Host(private.uri) as host, driver_for(host.domain(name)).open(host.domain(name)) as opened:
        assert opened.transport == "kvm-mmap"
    log = private.outside(f"/var/log/libvirt/qemu/{name}.log").read_text()
    assert "tainted" not in log
    domain.destroy()
    domain.undefine()

    transient = connection.createXML(f"""<domain type='qemu'><name>{name}-t</name>
<memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>""")
    refused = _run(private, "doctor", "--fix-memory-backing", f"{name}-t", "--yes", code=1)
    assert "transient" in refused.stderr
    assert "transient" in _memory(private, f"{name}-t")["advice"]
    transient.destroy()
    connection.close()


def test_whole_report(private: Private) -> None:
    checks = {check["check"] for check in _checks(private)}
    assert checks >= {"libvirt", "capabilities", "ptrace", "apparmor", "selinux", "hooks", "cache",
                      "daemon"}  # fmt: skip
    hook = private.hooks / "qemu.d/10-mine.dpkg-dist"
    hook.parent.mkdir()
    hook.touch(0o755)
    problems = [c for c in _checks(private, code=6) if c["status"] == "problem"]
    assert [Path(check["subject"]).name for check in problems] == [hook.name]
    assert "remove it" in problems[0]["advice"]
    _run(private, "doctor", "no-such-domain", code=3)
    hook.unlink()
    private.stop()
    down = [c for c in _checks(private, code=6) if c["check"] == "libvirt"]
    assert {c["status"] for c in down} == {"warning", "problem"}


def test_user_without_rights() -> None:
    """Told what is missing; nothing of it is a traceback."""
    program = (
        "import os, sys\nfrom virtintrospect.cli.main import run\n"
        "import virtintrospect.plugin.doctor, virtintrospect.plugin.tables, difflib, json, rich\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "os.environ.pop('VIRTINTROSPECT_CACHE', None)\n"
        "sys.exit(run(['doctor', '-o', 'json']))"
    )
    if os.geteuid() != 0:
        pytest.skip("changing the user needs root")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=120, check=False, cwd="/",
                          env=os.environ | {"HOME": "/nonexistent"})  # fmt: skip
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert {c["check"]: c["status"] for c in found}["capabilities"] == "warning"


def test_memory_of_a_machine_without_a_map() -> None:
    xml = "<domain><os><type arch='aarch64' machine='raspi3b'>hvm</type></os></domain>"
    domain = Domain("arm", "0" * 36, None, "shut off", "QEMU", "qemu:///system", xml)
    (check,) = doctor._memory(None, domain)  # type: ignore[arg-type]
    assert check.status == "warning"
