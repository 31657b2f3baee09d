"""An AArch64 guest: how its kernel is found, and images of it. Its tables: all other tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.machine import arm64
from virtintrospect.session import open_session

from .lab.guest import Guest

pytestmark = pytest.mark.architecture("aarch64")


def test_every_way_in_finds_the_same_kernel(linux: LinuxGuest) -> None:
    memory, registers = linux.memory, Registers(linux.kernel.root)
    found = [
        next(arm64.by_page_table(memory, 1 << 62)),
        next(arm64.by_vmcoreinfo(memory)),
        next(arm64.by_registers(memory, registers)),
    ]
    assert {(f.image, f.mode, f.root) for f in found} == {
        (linux.mapping.image, linux.mapping.mode, linux.mapping.root)
    }
    assert len({f.found_by for f in found}) == 3


class Registers:
    """As a target has them: TTBR1_EL1 with an ASID, TCR_EL1 for 4 KiB and 48 bits."""

    vcpus = 1

    def __init__(self, root: int) -> None:
        self.values = {"ttbr1_el1": root | 7 << 48 | 1, "tcr_el1": 2 << 30 | 16 << 16}

    def registers(self, vcpu: int) -> dict[str, int]:
        return self.values if vcpu == 0 else {}


def test_attach_does_not_look_at_all_memory(linux: LinuxGuest) -> None:
    assert linux.mapping.found_by == "a page table found in RAM"
    assert linux.mapping.root - linux.memory.regions[0].start < 160 << 20


def test_user_and_kernel_addresses_are_apart(linux: LinuxGuest) -> None:
    """Each half has its own table: the other half's addresses are no addresses there."""
    space = linux.process_space(1)
    assert space.walk(linux.mapping.image.start + (64 << 10)).paddr is None
    assert linux.kernel.walk(0x40_0000).paddr is None


@pytest.fixture(scope="module")
def images(
    guest: Guest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], dict[str, Path]]]:
    """Images of the guest in all forms, and its processes at that moment."""
    folder = tmp_path_factory.mktemp("arm64")
    folder.chmod(0o755)
    paths = {name: folder / name for name in ("elf", "kdump", "raw")}
    guest.domain.suspend()
    try:
        with open_session(guest.name) as session:
            truth = _names(session.guest)
            memory = session.target.memory
            with paths["raw"].open("wb") as file:
                for start in range(memory.regions[0].start, memory.end, 1 << 24):
                    file.write(memory.read(start, min(1 << 24, memory.end - start)))
        for name, form in (("elf", 0), ("kdump", 1)):
            # VIR_DOMAIN_CORE_DUMP_FORMAT_RAW, …_KDUMP_ZLIB; VIR_DUMP_MEMORY_ONLY
            guest.domain.coreDumpWithFormat(str(paths[name]), form, 16)
    finally:
        guest.domain.resume()
    yield truth, paths
    for path in paths.values():
        path.unlink(missing_ok=True)


def _names(guest: Any) -> dict[str, Any]:
    return {str(p.pid): (p.name, p.start_time) for p in guest.processes()}


@pytest.mark.parametrize("form", ["elf", "kdump", "raw"])
def test_images(images: tuple[dict[str, Any], dict[str, Path]], form: str) -> None:
    truth, paths = images
    with open_session(str(paths[form])) as session:
        assert _names(session.guest) == truth
        assert isinstance(session.guest, LinuxGuest)
        assert session.guest.memory.regions[0].start == 1 << 30


def test_registers_of_a_core(images: tuple[dict[str, Any], dict[str, Path]]) -> None:
    """Its CPU was at something: the stack begins with what its registers say."""
    with open_session(str(images[1]["elf"])) as session:
        frames = session.guest.cpu_stacks()
    assert frames[0].found_by in ("registers", "user")
    assert all(frame.confidence == 1.0 for frame in frames)
