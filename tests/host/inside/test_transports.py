"""The ways to the memory of a guest under KVM: the tables that they show are the guest's own."""

from __future__ import annotations

import dataclasses

import pytest

from tests.guests import compare
from tests.guests.lab.guest import Guest
from tests.guests.lab.hugepages import hugepages
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight.figures import sample
from virtintrospect.session import Session, open_session

from .fixtures import CONFIG, booted
from .host import MIB, rollup


def _agree(guest: Guest, session: Session) -> None:
    """Processes, threads, modules and log, between two of the guest's own words."""
    linux = session.guest
    assert isinstance(linux, LinuxGuest)
    linux.take_problems()
    before = guest.snapshot()
    processes, threads = linux.processes(), linux.processes(threads=True)
    modules, log = linux.modules(), linux.dmesg()
    after = guest.snapshot()
    assert compare.processes(processes, before, after) == []
    assert compare.threads(threads, before, after) == []
    assert compare.modules(modules, before) == []
    assert compare.log(log, before) == []
    assert linux.take_problems() == []
    assert "<domain type='kvm'" in guest.xml


def test_memory_of_a_process(guest: Guest, session: Session) -> None:
    """QEMU's own memory, as libvirt's default is."""
    assert session.target.transport == "kvm-process"
    _agree(guest, session)


@pytest.mark.parametrize("backing", ["memfd", "hugepages"])
def test_shared_memory(backing: str) -> None:
    """A memfd, and huge pages of hugetlbfs, of which the host has them all reserved."""
    config = dataclasses.replace(CONFIG, backing=backing, vcpus=1, ram_mib=192)
    with hugepages(config.ram_mib if backing == "hugepages" else 0) as had:
        assert had
        with booted(config) as guest, open_session(guest.name) as session:
            assert session.target.transport == "kvm-mmap"
            _agree(guest, session)
            vmm = sample(session.guest, session.target)["vmm"]
            found = rollup(guest.pid, "Shared_Hugetlb") + rollup(guest.pid, "Private_Hugetlb")
            assert vmm["hugetlb"] == found
            assert (found > 64 * MIB) == (backing == "hugepages")
            on_nodes = sum(held for _, held in vmm["nodes"])
            assert on_nodes > 64 * MIB
