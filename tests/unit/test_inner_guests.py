"""Guests of a KVM that is part of its kernel, which none of Debian's kernels has (synthetic)."""

from __future__ import annotations

import pytest

from tests.unit.built import BuiltKernel
from virtintrospect.errors import NoSuchTargetError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.kvm import virtual_machines

_LIST = {"list_head": "list_head *next; list_head *prev"}
_KVM = _LIST | {
    "cpuinfo_x86": "u8 x86; u8 x86_vendor",
    "kvm_mmu_page_role": "u32 level",
    "kvm_mmu_root_info": "u64 pgd; u64 hpa",
    "kvm_mmu": "kvm_mmu_root_info root; kvm_mmu_page_role root_role",
    "kvm_vcpu_arch": "kvm_mmu *mmu",
    "kvm_vcpu": "kvm_vcpu_arch arch",
    "kvm": "list_head vm_list; kvm_vcpu *vcpus[2]; int userspace_pid",
}


def kernel(vendor: int) -> BuiltKernel:
    """One machine, PID 77, of one virtual CPU."""
    made = BuiltKernel(_KVM)
    made.number("kvm_init", 0)
    made.make("cpuinfo_x86", {"x86_vendor": vendor}, symbol="boot_cpu_data")
    tables = made.make("kvm_mmu", {"root.hpa": 0x12_3000, "root_role.level": 5})
    vcpu = made.make("kvm_vcpu", {"arch.mmu": tables})
    machine = made.make("kvm", {"userspace_pid": 77, "vcpus[0]": vcpu})
    made.link(made.make("list_head", symbol="vm_list"), [made.at("kvm", machine, "vm_list")])
    return made


@pytest.mark.parametrize(
    ("vendor", "mode"), [(0, "ept-5-level"), (2, "npt-5-level"), (9, "npt-5-level")]
)
def test_of_a_kvm_that_is_built_in(vendor: int, mode: str) -> None:
    (found,) = virtual_machines(kernel(vendor).guest())
    assert (found.pid, found.mode.name, found.root) == (77, mode, 0x12_3000)


def _without_types() -> LinuxGuest:
    made = BuiltKernel(_LIST)
    made.number("kvm_init", 0)
    made.link(made.make("list_head", symbol="vm_list"), [])
    return made.guest()


def _without_data() -> LinuxGuest:
    made = kernel(0)
    del made.symbols["vm_list"]
    return made.guest()


def test_what_a_kvm_that_is_built_in_lacks_is_said() -> None:
    with pytest.raises(NoSuchTargetError, match=r"built in.*no type kvm"):
        virtual_machines(_without_types())
    with pytest.raises(NoSuchTargetError, match=r"built in.*no symbol vm_list"):
        virtual_machines(_without_data())


def test_no_kvm_and_no_guests() -> None:
    assert virtual_machines(BuiltKernel(_LIST).guest()) == []
