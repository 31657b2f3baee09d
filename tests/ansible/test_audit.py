"""The playbooks that make reports, on hosts that only say what real ones once said."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import BIN, ansible
from .fake import NAMES, Fake, failed
from .releases import oldest


@pytest.fixture(scope="module", params=["newest", "oldest"])
def release(request: pytest.FixtureRequest) -> Path:
    """Where the commands of a release of ansible-core are."""
    return BIN if request.param == "newest" else oldest()


@pytest.fixture
def hosts(tmp_path: Path) -> Callable[..., Path]:
    """Writes an inventory of hosts that are this machine."""

    def inventory(**more: Any) -> Path:
        known: dict[str, dict[str, Any]] = {
            name: {"ansible_connection": "local", "virtintrospect_executable": str(path)}
            for name, path in more.items()
        }
        known["away"] = {"ansible_host": "127.0.0.1", "ansible_port": 1}
        path = tmp_path / "hosts.json"
        path.write_text(json.dumps({"all": {"hosts": known}}))
        return path

    return inventory


def test_audit(
    tmp_path: Path, release: Path, make: Callable[[str], Fake], hosts: Callable[..., Path]
) -> None:
    """One host in order; one without the package, one whose libvirt is gone, one out of reach."""
    broken = make("broken")
    broken.answer("list", **failed(4, "libvirt does not answer"))
    good = make("good")
    inventory = hosts(good=good.path, broken=broken.path, bare=tmp_path / "nix")
    folder = tmp_path / "report"
    words = ["ansible-playbook", "-i", str(inventory), "virtintrospect.fleet.audit",
             "-e", f"virtintrospect_report={folder}"]  # fmt: skip
    (folder / "hosts").mkdir(parents=True)
    stale = folder / "hosts/gone.json.gz"
    stale.write_bytes(gzip.compress(b'{"host": "gone", "status": "ok"}'))
    done = ansible(words, bin_=release)
    assert "hosts: 4, without a result: 3" in done.stdout
    found = json.loads((folder / "report.json").read_text())
    said = {row["host"]: (row["status"], row.get("message", "")) for row in found["hosts"]}
    assert {host: status for host, (status, _) in said.items()} == {
        "good": "ok", "broken": "failed", "bare": "failed", "away": "unreachable"}  # fmt: skip
    assert "libvirt does not answer" in said["broken"][1]
    assert {row["guest"] for row in found["guests"]} == set(NAMES)
    assert found["findings"]
    sarif = json.loads((folder / "report.sarif").read_text())["runs"][0]
    rules = sarif["tool"]["driver"]["rules"]
    assert all(rule["shortDescription"]["text"] for rule in rules)
    for name in ("report.html", "csv/ps.csv", "report.ocsf.json"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600

    if release == BIN:
        done = ansible([*words, "-e", "virtintrospect_fail_on=info"], good=(2,))
        assert "there are findings of severity info or worse" in done.stdout


@pytest.mark.parametrize("theirs", ["hosts", "hosts/hv1"])
def test_what_others_keep_in_the_folder_stays(
    tmp_path: Path, release: Path, hosts: Callable[..., Path], theirs: str
) -> None:
    """An inventory that is called hosts is no folder of an earlier run."""
    path = tmp_path / theirs
    path.parent.mkdir(exist_ok=True)
    path.touch()
    words = ["ansible-playbook", "-i", str(hosts()), "virtintrospect.fleet.audit",
             "-e", f"virtintrospect_report={tmp_path}"]  # fmt: skip
    assert "must name another folder" in ansible(words, bin_=release, good=(2,)).stdout
    assert path.is_file()


@pytest.mark.parametrize(
    ("limit", "known", "report"),
    [("hv1", False, False), ("hv1,localhost", False, True), ("hv1:localhost", False, True),
     ("all", True, True), ("!away", True, True),
     # Of hosts that no inventory names, Ansible leaves localhost out here, too.
     ("all", False, False), ("*", False, False)],
)  # fmt: skip
def test_limit(
    tmp_path: Path,
    fake: Fake,
    hosts: Callable[..., Path],
    release: Path,
    limit: str,
    known: bool,
    report: bool,
) -> None:
    """A limit without localhost is an error, not a run without a report.

    Hosts outside of it were not asked, which is no failure of theirs.
    """
    inventory = hosts(hv1=fake.path, **({"localhost": fake.path} if known else {}))
    words = ["ansible-playbook", "-i", str(inventory), "virtintrospect.fleet.inventory",
             "-e", f"virtintrospect_report={tmp_path}", "--limit", limit]  # fmt: skip
    done = ansible(words, bin_=release, good=(0 if report else 2,))
    assert ("add localhost to --limit" in done.stdout) is not report
    assert (tmp_path / "report.html").exists() is report
    if report:
        found = json.loads((tmp_path / "report.json").read_text())
        away = "unreachable" if limit == "all" else "unasked"
        said = {row["host"]: row["status"] for row in found["hosts"]}
        assert said == {"hv1": "ok", "away": away}
        assert found["counts"]["hosts_failed"] == (away != "unasked")


def test_check_mode_of_a_playbook(
    tmp_path: Path, release: Path, fake: Fake, hosts: Callable[..., Path]
) -> None:
    words = ["ansible-playbook", "-i", str(hosts(hv1=fake.path)), "virtintrospect.fleet.audit",
             "-e", f"virtintrospect_report={tmp_path}/report", "--check"]  # fmt: skip
    ansible(words, bin_=release)
    assert not (tmp_path / "report").exists()


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    (tmp_path / "play.yml").write_text(json.dumps([{
        "hosts": "localhost", "gather_facts": False, "tasks": [
            {"virtintrospect.fleet.report_host": {"dest": str(tmp_path / "parts"), "info": {}}},
            {"virtintrospect.fleet.report": {"src": str(tmp_path), "html": str(page)},
             "register": "made"},
            {"ansible.builtin.assert": {"that": ["made is changed"]}},
        ]}]))  # fmt: skip
    words = ["ansible-playbook", str(tmp_path / "play.yml")]
    ansible([*words, "--check"])
    assert not page.exists()
    assert not (tmp_path / "parts").exists()
    ansible(words)
    assert page.exists()
    assert len(list((tmp_path / "parts").iterdir())) == 1
