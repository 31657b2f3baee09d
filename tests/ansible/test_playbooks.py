"""Playbooks, on the newest ansible-core for this Python and on the oldest that is supported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import BIN, ansible
from .fake import PWNED, Fake, recorded
from .releases import oldest

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["newest", "oldest"])
def release(request: pytest.FixtureRequest) -> Path:
    """Where the commands of a release of ansible-core are."""
    return BIN if request.param == "newest" else oldest()


def test_strings_of_a_hostile_guest(tmp_path: Path, fake: Fake, release: Path) -> None:
    pwned = tmp_path / "pwned"
    name = PWNED.replace("PATH", str(pwned))
    fake.answer("ps", out=[{"pid": 7, "name": name}])
    fake.answer("info", out={"hostname": name, name: name})
    finding = dict(recorded("check")[0], subject=name, detail=name, evidence=name)
    fake.answer("check", out=[finding], rc=6)
    words = ["ansible-playbook", str(HERE / "hostile.yml"), "-e", f"folder={tmp_path}",
             "-e", f"executable={fake.path}"]  # fmt: skip
    done = ansible(words, bin_=release)
    assert done.stdout.count("lookup('pipe'") > 3
    assert not pwned.exists()
    assert (tmp_path / "text").read_text() == f"{name} {name}"
    log = json.loads((tmp_path / "sarif").read_text())
    assert "lookup('pipe'" in log["runs"][0]["results"][0]["message"]["text"]
    assert len(log["runs"][0]["results"]) == 3
    events = json.loads((tmp_path / "ocsf").read_text())
    assert events[0]["message"] == f"{name}: {name}"


def test_hosts_that_fail_do_not_stop_the_others(
    tmp_path: Path, fake: Fake, release: Path, make: Callable[[str], Fake]
) -> None:
    old = make("old")
    old.forget("check")
    old.forget("check --list")
    broken = make("broken")
    broken.answer("list", rc=4, err="virt-introspect: libvirt does not answer\n")
    hosts = {"good": fake.path, "old": old.path, "broken": broken.path, "bare": tmp_path / "nix"}
    inventory = {
        "all": {"hosts": {name: {"executable": str(path)} for name, path in hosts.items()}}
    }
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))
    play = [{
        "hosts": "all", "connection": "local", "gather_facts": False,
        "tasks": [
            {"virtintrospect.fleet.guest_audit": {"executable": "{{ executable }}"},
             "register": "audit", "ignore_errors": True},
            {"ansible.builtin.copy": {
                "content": "{{ audit.reason | default('none') }} {{ audit.findings | length }}",
                "dest": f"{tmp_path}/{{{{ inventory_hostname }}}}.txt", "mode": "0600"}},
        ],
    }]  # fmt: skip
    (tmp_path / "play.json").write_text(json.dumps(play))
    ansible(
        ["ansible-playbook", "-i", str(tmp_path / "hosts.json"), str(tmp_path / "play.json")],
        bin_=release,
    )
    said = {name: (tmp_path / f"{name}.txt").read_text() for name in hosts}
    assert said == {
        "good": "none 3", "old": "old_version 0", "broken": "memory 0", "bare": "missing 0",
    }  # fmt: skip
