"""The inventory plugin, with hypervisors that say what was recorded."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import BIN, ansible
from .fake import FIRST, GUESTS, NAMES, SECOND, THIRD, Fake, failed
from .releases import oldest

HOSTILE = "6.1 {{ lookup('pipe', 'touch PATH') }} \\x1b]0;x"


@pytest.fixture
def hypervisors(make: Callable[[str], Fake]) -> list[Fake]:
    """Two, of which the second has one guest, of a name that the first has, too."""
    first, second = make("a"), make("b")
    second.answer("list", out=[FIRST | {"uuid": "0" * 8 + FIRST["uuid"][8:]}])
    return [first, second]


def inventory(folder: Path, *, good: tuple[int, ...] = (0,), **config: Any) -> tuple[Any, str]:
    """What ``ansible-inventory`` says of a configuration, and what it complains about."""
    file = folder / "fleet.virtintrospect.yml"
    file.write_text(json.dumps({"plugin": "virtintrospect.fleet.guests", **config}))
    words = ["ansible-inventory", "-i", str(file), "--list", "--export"]
    done = ansible(words, good=good, ANSIBLE_INVENTORY_UNPARSED_FAILED="true")
    return json.loads(done.stdout or "{}"), done.stderr


def plain(value: Any) -> Any:
    """Without the marks that say what must not be taken for a template."""
    if isinstance(value, dict):
        if set(value) == {"__ansible_unsafe"}:
            return value["__ansible_unsafe"]
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def of(fake: Fake, **more: Any) -> dict[str, Any]:
    return {"host": "localhost", "executable": str(fake.path), **more}


def test_guests_of_one_host(tmp_path: Path, fake: Fake) -> None:
    fake.answer("list", out=[FIRST | {"session": "ready"}, SECOND, THIRD])
    address = {"interface": "eth0", "net_namespace": 1, "address": "10.1.2.3", "scope": "global"}
    other = {"interface": "eth0", "net_namespace": 2, "address": "10.9.9.9", "scope": "global"}
    fake.answer("interfaces", out=[address, other])
    found, _ = inventory(
        tmp_path,
        hypervisors=[of(fake, name="hv1")],
        tables=["info", "interfaces"],
        compose={"cpus": "virtintrospect_tables.info.cpus"},
        groups={"old": "virtintrospect_kernel is version('6', '<')"},
        keyed_groups=[{"prefix": "machine", "key": "virtintrospect_tables.info.machine"}],
    )
    assert found["os_linux"]["hosts"] == NAMES
    assert found["hypervisor_hv1"]["hosts"] == NAMES
    assert found["session_ready"]["hosts"] == [FIRST["name"]]
    assert found["kernel_6_12_117_deb12_cloud_amd64"]["hosts"] == [FIRST["name"]]
    assert found["old"]["hosts"] == [g["name"] for g in GUESTS if g["kernel"].startswith("5")]
    assert found["machine_x86_64"]["hosts"] == NAMES
    known = plain(found["_meta"]["hostvars"][FIRST["name"]])
    assert known["cpus"] == known["virtintrospect_tables"]["info"]["cpus"]
    for key in ("name", "uuid", "id", "state", "kernel"):
        assert known[f"virtintrospect_{key}"] == FIRST[key]
    assert known["virtintrospect_addresses"] == ["10.1.2.3"]
    assert not any("ansible_host" in plain(v) for v in found["_meta"]["hostvars"].values())


def test_hosts_that_have_guests_of_one_name(tmp_path: Path, hypervisors: list[Fake]) -> None:
    first, second = hypervisors
    config = [of(first, name="a"), of(second, name="b"), {"host": "localhost", "name": "c",
              "executable": str(tmp_path / "nix")}]  # fmt: skip
    found, complaint = inventory(tmp_path, hypervisors=config)
    name = FIRST["name"]
    assert {f"{name}.a", f"{name}.b"} <= set(found["_meta"]["hostvars"])
    assert len(found["_meta"]["hostvars"]) == 4
    assert "c: " in complaint  # and the others are there
    inventory(tmp_path, hypervisors=config, unreachable="fail", good=(1, 4))
    found, _ = inventory(tmp_path, hypervisors=config[:2], hostnames="uuid", exclude=["*6.1-*"])
    assert FIRST["uuid"] in found["_meta"]["hostvars"]
    assert SECOND["uuid"] not in found["_meta"]["hostvars"]


@pytest.mark.parametrize("hostnames", ["name", "qualified"])
def test_names_that_are_more_than_names(tmp_path: Path, fake: Fake, hostnames: str) -> None:
    odd = [
        "{{ 7 * 191 }}",
        "-oProxyCommand=touch",
        "a:b",
        "!x",
        "x[1:3]",
        "a b",
        "a,b",
        "~x",
        "x\n",
    ]
    plain_ones = ["web01", "w_e.b+0-1"]
    names = odd + plain_ones
    uuids = [f"{n:08}{FIRST['uuid'][8:]}" for n in range(len(names))]
    rows = [FIRST | {"name": name, "uuid": uuid} for name, uuid in zip(names, uuids, strict=True)]
    fake.answer("list", out=rows)
    found, _ = inventory(tmp_path, hypervisors=[of(fake, name="hv1")], hostnames=hostnames)
    end = ".hv1" if hostnames == "qualified" else ""
    known = uuids[: len(odd)] + [name + end for name in plain_ones]
    assert sorted(found["_meta"]["hostvars"]) == sorted(known)


@pytest.mark.parametrize("hostnames", ["name", "qualified"])
def test_names_that_lead_elsewhere(tmp_path: Path, fake: Fake, hostnames: str) -> None:
    """A task for the guest would go to whoever has that address, or that name."""
    own = socket.gethostname()
    bare = ["10.0.0.1", "127.1", "7", "0x7f000001", "１２７.0.0.1", "Hv9", "db.example.com.",
            "hv1.example.com", "web", own, SECOND["uuid"].upper()]  # fmt: skip
    here = ["localhost", "localhost.x", "ip6-loopback", "x.LOCALHOST"]
    fine = ["web01", "1.2.3.4.5", "10.0.0.1-old", "db", "hv9x"]
    taken = [*bare, *here] if hostnames == "name" else ["localhost", "hv8", "db.example"]
    names = [*taken, *fine]
    uuids = [f"{n:08}{FIRST['uuid'][8:]}" for n in range(len(names))]
    rows = [FIRST | {"name": name, "uuid": uuid} for name, uuid in zip(names, uuids, strict=True)]
    fake.answer("list", out=rows)
    others = tmp_path / "hosts.json"
    others.write_text(json.dumps({"web": {"hosts": {
        "hv9": None, "hv8.com": None, "w": {"ansible_host": "db.example.com"}}}}))  # fmt: skip
    config = {"plugin": "virtintrospect.fleet.guests", "hostnames": hostnames, "hypervisors": [
        of(fake, name="hv1.example.com" if hostnames == "name" else "com")]}  # fmt: skip
    file = tmp_path / "fleet.virtintrospect.yml"
    file.write_text(json.dumps(config))
    words = ["ansible-inventory", "-i", str(others), "-i", str(file), "--list", "--export"]
    done = ansible(words, ANSIBLE_INVENTORY_UNPARSED_FAILED="true")
    found = json.loads(done.stdout)
    end = "" if hostnames == "name" else ".com"
    ours = {*uuids[: len(taken)], *(name + end for name in fine)}
    assert set(found["os_linux"]["hosts"]) == ours
    assert " ".join(done.stderr.split()).count("it gets its UUID here") == len(taken)
    hosts = {name: plain(known) for name, known in found["_meta"]["hostvars"].items()}
    assert not any("virtintrospect_uuid" in hosts.get(name, {}) for name in ("hv9", "hv8.com", "w"))


def test_a_name_that_two_have(tmp_path: Path, hypervisors: list[Fake]) -> None:
    """The second gets its UUID; the same guest of the same source stays what it is."""
    config = [of(each, name=name) for each, name in zip(hypervisors, "ab", strict=True)]
    found, complaint = inventory(tmp_path, hypervisors=config, hostnames="name")
    assert FIRST["name"] in found["_meta"]["hostvars"]
    assert "0" * 8 + FIRST["uuid"][8:] in found["_meta"]["hostvars"]
    assert "that of another host" in " ".join(complaint.split())
    file = str(tmp_path / "fleet.virtintrospect.yml")
    twice = ansible(["ansible-inventory", "-i", file, "-i", file, "--list", "--export"])
    assert json.loads(twice.stdout)["_meta"]["hostvars"].keys() == found["_meta"]["hostvars"].keys()


@pytest.mark.parametrize("called", ["localhost", "{{ lookup('pipe', 'touch PATH') }}"])
@pytest.mark.parametrize(
    "release", [pytest.param(BIN, id="newest"), pytest.param(None, id="oldest")]
)
def test_what_a_guest_calls_itself(
    tmp_path: Path, fake: Fake, release: Path | None, called: str
) -> None:
    """Neither a template, nor a group of its choice, nor this machine."""
    pwned = tmp_path / "pwned"
    hostile = HOSTILE.replace("PATH", str(pwned))
    fake.answer(
        "list", out=[FIRST | {"kernel": hostile, "name": called.replace("PATH", str(pwned))}]
    )
    fake.answer("info", out={"hostname": hostile, "os": hostile})
    found, _ = inventory(
        tmp_path,
        hypervisors=[of(fake)],
        tables=["info"],
        compose={"composed": "virtintrospect_tables.info.hostname"},
        keyed_groups=[{"prefix": "os", "key": "virtintrospect_tables.info.os"}],
        strict=True,
    )
    assert list(found["_meta"]["hostvars"]) == [FIRST["uuid"]]
    assert plain(found["_meta"]["hostvars"][FIRST["uuid"]])["composed"] == hostile
    groups = [name for name in found if name not in ("_meta", "all")]
    assert all(name.replace("_", "").isalnum() and name.isascii() for name in groups)
    text = "msg='{{ virtintrospect_kernel }} {{ composed }} {{ inventory_hostname }}'"
    done = ansible(
        ["ansible", "-i", str(tmp_path / "fleet.virtintrospect.yml"), "all", "-m",
         "ansible.builtin.debug", "-a", text],
        bin_=release or oldest(),
    )  # fmt: skip
    assert "lookup('pipe'" in done.stdout
    assert not pwned.exists()


@pytest.mark.parametrize(
    "odd",
    [{"a": 1}, ["web01"], [{"name": "!", "uuid": "localhost"}]],
)  # fmt: skip
def test_a_host_that_says_odd_things(tmp_path: Path, hypervisors: list[Fake], odd: Any) -> None:
    """It costs its own guests, and writes nothing on a terminal but text."""
    first, second = hypervisors
    second.answer("list", out=odd)
    first.answer("interfaces", out={"a": 1})
    first.answer("info", rc=4, err="\x1b]0;pwned\x07\n")
    found, complaint = inventory(
        tmp_path,
        hypervisors=[of(first, name="a"), of(second, name="b")],
        tables=["info", "interfaces"],
    )
    assert len(found["_meta"]["hostvars"]) == len(GUESTS)
    assert "b: its list of guests makes no sense" in " ".join(complaint.split())
    assert "pwned" in complaint
    assert "\x1b]0" not in complaint


def test_the_cache_is_used_and_holds_no_half(tmp_path: Path, hypervisors: list[Fake]) -> None:
    first, second = hypervisors
    cache = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile",
             "cache_connection": str(tmp_path / "cache")}  # fmt: skip
    config: dict[str, Any] = {"hypervisors": [of(first, name="a"), of(second, name="b")], **cache}
    second.answer("list", **failed(4, "libvirt does not answer"))
    assert len(inventory(tmp_path, **config)[0]["_meta"]["hostvars"]) == 3
    second.answer("list", out=[FIRST])
    whole = plain(inventory(tmp_path, **config)[0])
    assert len(whole["_meta"]["hostvars"]) == 4
    second.answer("list", **failed(4, "libvirt does not answer"))
    assert plain(inventory(tmp_path, **config)[0]) == whole


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hypervisors": [{"name": "x"}]}, "host"),
        ({"hypervisors": [{"host": "a@x"}, {"host": "b@x"}]}, "x is there twice"),
    ],
)
def test_configurations_that_make_no_sense(
    tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    assert says in inventory(tmp_path, good=(1, 4), **config)[1]
