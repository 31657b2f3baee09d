"""Guests of libvirt's libxl driver, in a dom0 where libvirtd runs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.running import COMMAND, Running
from tests.xen.lab.guest import XenConfig, XenGuest
from tests.xen.lab.parts import PARTS

URI = "xen:///system"
_BOOT_PATIENCE = 240.0
#: libvirt finds no processor model that the emulated one is at least as good as.
_MODEL = Path("/usr/share/libvirt/cpu_map/x86_qemu64.xml")
#: Hooks are in place before libvirtd looks for them.
_HOOK = Path("/etc/libvirt/hooks/libxl.d/50-virtintrospect")
_SPOOL = Path("/var/lib/virtintrospect/spool")


def virsh(*words: str) -> str:
    done = subprocess.run(
        ["virsh", "-c", URI, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[None]:
    _MODEL.write_text(
        "".join(line for line in _MODEL.read_text().splitlines(True) if "'sep'" not in line)
    )
    _HOOK.parent.mkdir(parents=True, exist_ok=True)
    _HOOK.write_bytes(Path("hooks/libxl.d/50-virtintrospect").read_bytes())
    _HOOK.chmod(0o755)
    _SPOOL.mkdir(parents=True, mode=0o700, exist_ok=True)
    started = [
        subprocess.Popen([name], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in ("virtlogd", "libvirtd")
    ]
    deadline = time.monotonic() + 120
    ask = ["virsh", "-c", URI, "uri"]
    while (done := subprocess.run(ask, capture_output=True, check=False)).returncode:
        assert time.monotonic() < deadline, done.stderr.decode()
        time.sleep(1)
    yield
    for process in reversed(started):
        process.terminate()
        process.wait(60)


@pytest.fixture
def domain(
    libvirtd: None,  # noqa: ARG001
    guest: XenGuest,
    tmp_path: Path,
) -> Iterator[str]:
    """The same kind of guest as the one of the other tests, made by libvirt."""
    config: XenConfig = guest.config
    _, kernel, initramfs, _ = json.loads(os.environ[PARTS])["kernels"][config.kernel]
    kind = "machine='xenpv'>linux" if config.kind == "pv" else "machine='xenpvh'>xenpvh"
    path = tmp_path / "domain.xml"
    path.write_text(f"""
<domain type='xen'>
  <name>by-libvirt</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' {kind}</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>console=hvc0 loglevel=4 panic=-1 lab.workload=0</cmdline>
  </os>
  <devices><console type='pty'/></devices>
</domain>
""")
    virsh("create", str(path))
    yield "by-libvirt"
    subprocess.run(["virsh", "-c", URI, "destroy", "by-libvirt"], check=False, timeout=60)


def _command(*words: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [COMMAND, "-c", URI, *words, "-o", "json"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def test_daemon_list_and_tables(domain: str, guest: XenGuest, tmp_path: Path) -> None:
    """The daemon attaches by libvirt's word; ``list`` and ``ps`` show the guest."""
    daemon = Running(tmp_path, URI)
    try:
        row = daemon.wait(domain)
        assert row["kernel"] == guest.release
        assert row["transport"] == "xen-map"
        assert "Traceback" not in daemon.text()
    finally:
        daemon.stop()
    (row,) = [row for row in _command("list") if row["name"] == domain]
    assert row["kernel"] == guest.release
    names = [row["name"] for row in _command("ps", domain)]
    assert names[:2] == ["init", "kthreadd"]


def test_hook_was_called(domain: str) -> None:
    """libvirt runs what is in libxl.d: it stamps its file, or spools when no daemon listens."""
    assert virsh("domstate", domain).strip() == "running"
    assert any("by-libvirt" in path.read_text() for path in _SPOOL.glob("*"))
