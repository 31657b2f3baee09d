"""The Ansible collection on a real guest, through a local connection."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ansible.conftest import ansible
from virtintrospect import session
from virtintrospect.cli import batch, kept
from virtintrospect.domain import Domain
from virtintrospect.session import Session
from virtintrospect.symbols.store import Store

from .lab.guest import Guest

COMMAND = Path(sys.executable).with_name("virt-introspect")

PLAY = [{
    "hosts": "localhost", "connection": "local", "gather_facts": False,
    "module_defaults": {
        "group/virtintrospect.fleet.fleet": {"executable": str(COMMAND), "uri": "qemu:///system"}
    },
    "tasks": [
        {"virtintrospect.fleet.guest_info": {
            "domains": ["{{ domain }}", "no-such-domain"], "tables": ["info", "ps"], "facts": True},
         "register": "info"},
        {"virtintrospect.fleet.guest_audit": {
            "domains": ["{{ domain }}"], "baseline": "{{ folder }}/baseline",
            "save_baseline": True},
         "register": "saved"},
        {"virtintrospect.fleet.guest_audit": {
            "domains": ["{{ domain }}"], "baseline": "{{ folder }}/baseline"},
         "register": "audit"},
        {"virtintrospect.fleet.guest_hints": {
            "domains": ["{{ domain }}"], "watch": "2s", "apply": True},
         "check_mode": True, "register": "hints"},
        {"ansible.builtin.copy": {
            "content": "{{ [info, saved, audit, hints, ansible_facts.virtintrospect] | to_json }}",
            "dest": "{{ folder }}/results", "mode": "0600"}},
    ],
}]  # fmt: skip


@pytest.fixture
def named(one_guest: Guest, tmp_path: Path) -> Iterator[str]:
    """A process of the guest that calls itself a template; ``tmp_path / "pwned"`` if it is one."""
    name = "{{ lookup('pipe', 'touch " + str(tmp_path / "pwned") + "') }}"
    one_guest.put("/tmp/named.sh", b"echo -n '{{ 7 * 191 }}' >/proc/self/comm; sleep 600; :\n")
    one_guest.put("/tmp/name", name.encode())
    one_guest.run(
        'setsid sh /tmp/named.sh "$(cat /tmp/name)" >/dev/null 2>&1 &'
        "until grep -q '7 [*] 191' /proc/[0-9]*/comm 2>/dev/null; do usleep 50000; done"
    )
    yield name
    one_guest.run("pkill -f /tmp/named.sh; rm /tmp/named.sh /tmp/name", check=False)


def test_modules_on_a_real_guest(one_guest: Guest, tmp_path: Path, named: str) -> None:
    (tmp_path / "play.json").write_text(json.dumps(PLAY))
    variables = {"domain": one_guest.name, "folder": str(tmp_path)}
    words = ["ansible-playbook", str(tmp_path / "play.json"), "-e", json.dumps(variables)]
    ansible(words)
    info, saved, audit, hints, facts = json.loads((tmp_path / "results").read_text())
    [guest] = info["guests"]
    assert (guest["name"], guest["uuid"]) == (one_guest.name, one_guest.uuid)
    assert guest["tables"]["info"]["release"] == guest["kernel"]
    assert guest["kernel"] == one_guest.run("uname -r").decode().strip()
    assert facts["guests"] == info["guests"]
    [hostile] = [row for row in guest["tables"]["ps"] if row["name"] == "{{ 7 * 191 }}"]
    assert hostile["cmdline"] == f"sh /tmp/named.sh {named}"
    assert not (tmp_path / "pwned").exists()
    [missed] = info["failed_guests"]
    assert (missed["name"], missed["reason"]) == ("no-such-domain", "no_such_target")

    assert saved["changed"]
    assert (tmp_path / "baseline" / f"{one_guest.uuid}.json").stat().st_size > 0
    for result in (saved, audit):
        assert result["failed_guests"] == []
        assert [known["name"] for known in result["guests"]] == [one_guest.name]
        assert {f["domain"] for f in result["findings"]} <= {one_guest.name}
        assert {f["rule"] for f in result["findings"]} <= {rule["rule"] for rule in result["rules"]}
    assert [saved["guests"][0]["baseline"], audit["guests"][0]["baseline"]] == [False, True]
    assert not audit["changed"]

    assert hints["failed_guests"] == []
    assert {hint["domain"] for hint in hints["hints"]} <= {one_guest.name}
    assert hints["changed"] == any("after" in hint for hint in hints["hints"])

    inventory = tmp_path / "fleet.virtintrospect.yml"
    config = {"plugin": "virtintrospect.fleet.guests", "domains": [one_guest.name],
              "hypervisors": [{"host": "localhost", "executable": str(COMMAND),
                               "uri": "qemu:///system"}]}  # fmt: skip
    inventory.write_text(json.dumps(config))
    done = ansible(["ansible-inventory", "-i", str(inventory), "--list"])
    assert json.loads(done.stdout)["os_linux"]["hosts"] == [one_guest.name]


def test_a_batch_recognises_a_guest_once(one_guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called; and what it shows is of now."""
    opened = []

    def open_domain(domain: Domain, store: Store) -> Session:
        opened.append(domain.name)
        return session.open_domain(domain, store)

    monkeypatch.setattr(kept, "open_domain", open_domain)
    with contextlib.closing(kept.Kept()) as open_ones:

        def ask(*words: str) -> Any:
            answer = batch._answer(["-o", "json", "-c", "qemu:///system", *words], open_ones)
            assert answer["rc"] in (0, 6), answer["err"]
            return json.loads(str(answer["out"]))

        names = (one_guest.name, one_guest.uuid)
        first = [ask("info", name) for name in names]
        assert (
            first[0]["release"] == first[1]["release"] == one_guest.run("uname -r").decode().strip()
        )
        ask("check", one_guest.name)
        pid = int(one_guest.run("sleep 600 >/dev/null 2>&1 & echo $!"))
        try:
            assert pid in {row["pid"] for row in ask("ps", one_guest.uuid)}
        finally:
            one_guest.run(f"kill {pid}")
        assert one_guest.uuid in {row["uuid"] for row in ask("list", "--columns", "name,uuid")}
        assert opened == [one_guest.name]
