"""``sysctl`` against every file of /proc/sys, in two network namespaces, on every guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest

from .lab.guest import Guest

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

_SETUP = """
echo 12345-12350,12360 > /proc/sys/net/ipv4/ip_local_reserved_ports
echo "some host" > /proc/sys/kernel/domainname; ip link add eth0.100 type dummy
echo -n 17 > /proc/sys/net/ipv4/conf/dummy0/tag
unshare -n sleep 100000 >/dev/null 2>&1 & other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/1/ns/net)" ]; do usleep 50000; done
echo $other > /tmp/other
nsenter -t $other -n sh -c "cd /proc/sys/net/ipv4; echo 1 > ip_forward; echo 7 > ip_default_ttl"
"""
#: One process each for all names and all values: to start one a file takes a minute.
_ASK = "find /proc/sys%s -type f; echo ==; grep -rHs '' /proc/sys%s"
#: Handlers that print no plain variable: what they are, by the tests of all kernels.
_COMPUTED = 0.10


@pytest.fixture(scope="module")
def busy(guest: Guest) -> Iterator[Guest]:
    """The guest with values that are not the defaults."""
    guest.run(_SETUP, timeout=60)
    yield guest
    guest.run("kill $(cat /tmp/other); ip link del eth0.100; "
              "echo > /proc/sys/net/ipv4/ip_local_reserved_ports", check=False)  # fmt: skip


def test_sysctl(linux: LinuxGuest, busy: Guest) -> None:
    before = truth(busy)
    ours = linux.sysctl()
    after = truth(busy)
    assert linux.take_problems() == []
    here = int(busy.run("readlink /proc/1/ns/net").strip()[5:-1])
    mine = {row.name: row for row in ours if row.net_namespace in (None, here)}
    assert mine.keys() == before.keys()
    stable = {name for name, value in before.items() if after[name] == value}
    wrong = [
        (name, mine[name].value, before[name], mine[name].handler)
        for name in stable
        if mine[name].value is not None and plain(mine[name].value or b"") != plain(before[name])
    ]
    assert wrong == []
    unknown = [row for row in mine.values() if row.value is None]
    assert len(unknown) < _COMPUTED * len(mine), {row.handler for row in unknown}
    assert not {"proc_dointvec", "proc_douintvec", "proc_doulongvec_minmax", "proc_dostring"} & {
        row.handler for row in unknown if row.mode != "0200"
    }


def test_namespaces(linux: LinuxGuest, busy: Guest) -> None:
    pid = int(busy.get("/tmp/other"))
    there = int(busy.run(f"readlink /proc/{pid}/ns/net").strip()[5:-1])
    rows = {row.name: row for row in linux.sysctl("net") if row.net_namespace == there}
    said = truth(busy, "/net", f"nsenter -t {pid} -n ")
    assert rows[b"net.ipv4.ip_forward"].value == b"1"
    assert rows[b"net.ipv4.ip_default_ttl"].value == b"7"
    for name, row in rows.items():
        assert row.value is None or plain(row.value) == plain(said[name]), name
    assert rows.keys() <= said.keys()  # the rest is shared by all namespaces


@pytest.mark.usefixtures("busy")
def test_words(linux: LinuxGuest) -> None:
    rows = {row.name: row.value for row in linux.sysctl() if row.name.startswith(b"kernel.")}
    assert rows[b"kernel.domainname"] == b"some host"
    found = linux.sysctl("net.ipv4.conf.eth0/100")
    assert len(found) > 20
    assert all(row.name.startswith(b"net.ipv4.conf.eth0/100.") for row in found)
    (ports,) = {row.value for row in linux.sysctl("net.ipv4.ip_local_reserved_p*")} - {b""}
    assert ports == b"12345-12350,12360"
    assert {row.value for row in linux.sysctl("net.ipv4.conf.dummy0.tag")} == {b"17"}
    assert linux.sysctl("no.such") == []


def plain(value: bytes) -> bytes:
    """Without what separates numbers."""
    return b" ".join(value.split())


def truth(guest: Guest, below: str = "", prefix: str = "") -> dict[bytes, bytes]:
    """Every file of /proc/sys, named as sysctl(8) does."""
    command = _ASK.replace("%s", below)
    answer = guest.run(f'{prefix}sh -c "{command}"', timeout=120, check=False)
    names, _, lines = answer.partition(b"==\n")
    values: dict[bytes, list[bytes]] = {name: [] for name in names.splitlines()}
    for line in lines.splitlines():
        path, _, value = line.partition(b":")
        values.setdefault(path, []).append(value)
    return {
        b".".join(word.replace(b".", b"/") for word in path.split(b"/")[3:]): b"\n".join(found)
        for path, found in values.items()
    }
