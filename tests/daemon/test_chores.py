"""What sessions do on their own, with real guests: their log, crashes, figures for others."""

from __future__ import annotations

import contextlib
import json
import lzma
import socket
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.guests.lab import apt
from tests.guests.lab.domain import Config, domain_xml
from tests.guests.lab.guest import Guest, GuestError
from tests.guests.lab.kernels import KERNELS
from tests.guests.lab.paths import cache, locked
from tests.guests.lab.private import Private

from .running import Running, eventually, running

#: A guest that stays as it is after a panic.
HANGS = "lab.sleepers=3 panic=0"
_PVPANIC = ("pvpanic", "pvpanic-mmio")


@pytest.fixture(scope="module")
def busy(private: Private, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon that does all it can do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running(
        tmp_path_factory.mktemp("busy"), private.uri,
        history={"interval_seconds": 0.5}, metadata={"publish": True, "interval_seconds": 0.5},
        metrics={"enabled": True, "port": port},
    ) as daemon:  # fmt: skip
        yield daemon


def reports(daemon: Running, name: str) -> list[dict[str, Any]]:
    folder = daemon.state / "triage"
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"*-{name}.json"))]


def crash(guest: Guest) -> None:
    """The guest answers first, so that nobody has to wait for an answer that does not come."""
    with contextlib.suppress(GuestError):
        guest.run("(sleep 1; echo c > /proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &")


def test_boot_and_oom_kill_are_logged(busy: Running, private: Private) -> None:
    with Guest(Config("6.12", ram_mib=256, cmdline=HANGS), private=private) as guest:
        busy.wait(guest.name)
        eventually(lambda: f"guest booted domain={guest.name}" in busy.text())
        guest.execute("echo f > /proc/sysrq-trigger", 20)
        eventually(lambda: f"guest oom-kill domain={guest.name}" in busy.text())
        guest.run("echo '<0>Kernel panic - not syncing: a lie' > /dev/kmsg")
        eventually(lambda: busy.session(guest.name)["looks"] > 5)
        assert f"guest panic domain={guest.name}" not in busy.text()


def test_panic_that_hangs_is_reported(busy: Running, private: Private) -> None:
    """Without pvpanic libvirt does not know of it; anonymous RAM."""
    config = Config("6.12", ram_mib=256, backing="anonymous", cmdline=HANGS)
    with Guest(config, private=private) as guest:
        busy.wait(guest.name)
        crash(guest)
        (report,) = eventually(lambda: reports(busy, guest.name))
        _check(report, guest, "panic")
        assert f"guest panic domain={guest.name}" in busy.text()
        assert guest.domain.isActive()


@pytest.mark.parametrize(("action", "backing"), [("destroy", "memfd"), ("preserve", "anonymous")])
def test_crash_that_pvpanic_tells(
    busy: Running, private: Private, monkeypatch: pytest.MonkeyPatch, action: str, backing: str
) -> None:
    """libvirt ends QEMU, or leaves it there; shared RAM outlives QEMU."""

    def with_panic(*arguments: Any, **options: Any) -> str:
        xml = domain_xml(*arguments, **options)
        xml = xml.replace("<on_crash>destroy", f"<on_crash>{action}")
        return xml.replace("</devices>", "<panic model='isa'/></devices>")

    monkeypatch.setattr("tests.guests.lab.guest.domain_xml", with_panic)
    config = Config("6.12", ram_mib=256, backing=backing, cmdline=HANGS)
    with Guest(config, private=private) as guest:
        for name, content in _modules(guest.release).items():
            guest.put(f"/tmp/{name}.ko", content)
            guest.run(f"insmod /tmp/{name}.ko")
        busy.wait(guest.name)
        eventually(lambda: f"guest booted domain={guest.name}" in busy.text())
        crash(guest)
        eventually(lambda: f"guest crashed domain={guest.name}" in busy.text())
        if action == "destroy":
            busy.wait(guest.name, "gone")
        (report,) = eventually(lambda: reports(busy, guest.name))
        _check(report, guest, "crash")
        if action == "preserve":
            busy.wait(guest.name)


def _check(report: dict[str, Any], guest: Guest, reason: str) -> None:
    assert report["reason"] in (reason, "panic")  # its log may have been read first
    assert report["domain"]["uuid"] == guest.uuid
    texts = [row["text"] for row in report["tables"]["dmesg"]]
    assert any("Kernel panic - not syncing: sysrq triggered crash" in text for text in texts)
    assert "ps" not in report["errors"], report
    assert {"init", "kthreadd"} <= {row["name"] for row in report["tables"]["ps"]}
    assert report["tables"]["info"]["release"] == guest.release
    assert report["tables"]["memory"]["memory_total"] > 100 << 20
    assert report["tables"]["modules"]
    assert "sysrq triggered crash" in report["tables"]["crash"]["message"]
    assert report["tables"]["cpu_stacks"]


def _modules(release: str) -> dict[str, bytes]:
    """The modules of pvpanic, which the lab does not unpack, from the kernel's package."""
    places = {name: cache() / "built" / f"{name}-{release}.ko" for name in _PVPANIC}
    with locked("pvpanic"):
        if not all(path.exists() for path in places.values()):
            packages = list((cache() / "packages").glob(f"linux-image-{release}_*.deb"))
            source = KERNELS["6.12"]
            package = packages[0] if packages else apt.download(source.suite, [source.image])[0]
            command = ["dpkg-deb", "--fsys-tarfile", str(package)]
            with (
                subprocess.Popen(command, stdout=subprocess.PIPE) as unpacked,
                tarfile.open(fileobj=unpacked.stdout, mode="r|") as files,
            ):
                for member in files:
                    name = member.name.rpartition("/")[2].removesuffix(".ko.xz")
                    if name in places and (content := files.extractfile(member)):
                        places[name].write_bytes(lzma.decompress(content.read()))
    return {name: path.read_bytes() for name, path in places.items()}


def test_figures_are_kept_published_and_served(busy: Running, one: Guest) -> None:
    import libvirt

    busy.wait(one.name)
    path = busy.state / "history" / f"{one.uuid}.jsonl"
    eventually(lambda: path.exists() and len(path.read_text().splitlines()) > 2)
    # The last may be half a line.
    first, second = map(json.loads, path.read_text().splitlines()[:2])
    assert second["time"] > first["time"]
    assert 100 << 20 < first["memory"]["memory_total"] < 256 << 20
    assert second["cpu"]["system"] >= first["cpu"]["system"]
    assert first["load"]["total"] > 10

    def published() -> ElementTree.Element | None:
        with contextlib.suppress(libvirt.libvirtError):
            text = one.domain.metadata(2, "urn:virtintrospect:session:1")
            found = ElementTree.fromstring(text)
            return found if found.get("state") == "ready" and len(found) else None
        return None

    element = eventually(published)
    assert element is not None
    assert element.get("kernel") == one.release
    # A kernel that has booted gives memory back: the first sample may be from before that.
    assert int(element[0].get("memory_total") or 0) >= first["memory"]["memory_total"]
    port = json.loads(_setting(busy.config, "port"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    assert f'domain="{one.name}",kind="memory_available"' in text
    assert f'domain="{one.name}",state="ready",uuid="{one.uuid}"}} 1.0' in text


def _setting(path: Path, name: str) -> str:
    return next(
        line.partition(" = ")[2] for line in path.read_text().splitlines() if line.startswith(name)
    )
