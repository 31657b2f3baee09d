"""The guest-physical map as computed from command lines; QEMU itself checks it elsewhere."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtintrospect_kvm.layout import Piece, layout_of
from virtintrospect_kvm.options import parse_option, parse_size

from virtintrospect.errors import EncryptedMemoryError, MemoryAccessError, VirtIntrospectError

GIB = 1 << 30


def pieces(*arguments: str) -> tuple[Piece, ...]:
    return layout_of(["qemu", *arguments]).pieces


@pytest.mark.parametrize(
    ("machine", "size", "low"),
    [
        ("pc-q35-7.2", 3 * GIB, 2 * GIB),
        ("q35", 0xAFF00000, 0xAFF00000),
        ("q35", 0xB0000000, 0x80000000),
        ("pc-i440fx-7.2", 3 * GIB, 3 * GIB),
        ("pc", 0xE0000000, 0xC0000000),
        ("pc-i440fx-1.7", 4 * GIB, 0xE0000000),
        ("pc-i440fx-rhel7.6.0", 4 * GIB, 0xC0000000),
        ("pc-q35-jammy", 4 * GIB, 0x80000000),
    ],
)
def test_split(machine: str, size: int, low: int) -> None:
    first, second, *rest = pieces("-machine", f"{machine},usb=off", "-m", f"size={size >> 10}k")
    assert first == (0, 0xA0000, 0, 0)
    assert second == (0xC0000, low, 0, 0xC0000)
    assert rest == ([(4 * GIB, 4 * GIB + size - low, 0, low)] if size > low else [])


def test_amd_leaves_room_below_one_tebibyte() -> None:
    big = ("-machine", "pc-q35-7.2", "-m", "1024G", "-accel", "tcg", "-cpu")
    assert pieces(*big, "EPYC")[-1].start == 1 << 40
    assert pieces(*big, "max,vendor=GenuineIntel")[-1].start == 4 * GIB
    assert pieces(*big, "Skylake-Server")[-1].start == 4 * GIB
    old = ("-machine", "pc-q35-7.0", "-m", "1024G", "-accel", "tcg", "-cpu", "EPYC")
    assert pieces(*old)[-1].start == 4 * GIB
    small = ("-machine", "pc-q35-7.2", "-m", "16G", "-accel", "tcg", "-cpu", "EPYC")
    assert pieces(*small)[-1].start == 4 * GIB


def test_two_nodes_across_the_hole() -> None:
    found = pieces(
        "-machine", "q35", "-m", "6144",
        "-object", '{"qom-type":"memory-backend-memfd","id":"a","share":true,"size":3221225472}',
        "-object", "memory-backend-ram,id=b,size=3G",
        "-numa", "node,nodeid=0,memdev=a", "-numa", "node,nodeid=1,memdev=b",
        "-numa", "dist,src=0,dst=1,val=20",
    )  # fmt: skip
    assert found[2:] == ((4 * GIB, 5 * GIB, 0, 2 * GIB), (5 * GIB, 8 * GIB, 1, 0))


def test_hotplugged_memory_comes_from_the_xml() -> None:
    xml = """<domain><devices>
      <memory model='dimm'><target><size unit='MiB'>512</size></target><alias name='dimm0'/>
        <address type='dimm' slot='0' base='0x100000000'/></memory>
      <memory model='virtio-mem'><target><size unit='KiB'>1048576</size></target>
        <alias name='virtiomem0'/><address type='pci' bus='0x01'/></memory>
    </devices></domain>"""
    layout = layout_of(["qemu", "-machine", "q35", "-m", "size=1048576k,slots=4,maxmem=4G"], xml)
    assert layout.pieces[-1] == (4 * GIB, 4 * GIB + (512 << 20), 1, 0)
    assert layout.unplaced == ("virtiomem0",)


@pytest.mark.parametrize(
    ("arguments", "xml", "kind"),
    [
        (["-object", '{"qom-type":"sev-guest","id":"lsec0","policy":3}'], "", "SEV"),
        (["-object", "sev-snp-guest,id=lsec0"], "", "SEV-SNP"),
        (["-object", "tdx-guest,id=lsec0"], "", "TDX"),
        ([], "<domain><launchSecurity type='sev-snp'/></domain>", "SEV-SNP"),
        ([], "<domain><launchSecurity type='tdx'/></domain>", "TDX"),
    ],
)
def test_encrypted(arguments: list[str], xml: str, kind: str) -> None:
    with pytest.raises(EncryptedMemoryError, match=rf"\({kind}\)") as caught:
        layout_of(["qemu", "-machine", "q35", *arguments], xml)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["-machine", "microvm"],
        ["-machine", "virt"],
        [],
        ["-machine", "q35,memory-backend=none"],
        ["-machine", "q35", "-m", "lots"],
        ["-machine", "q35", "-m", "size=1G,slots=x,maxmem=1T"],
        [
            "-machine",
            "q35",
            "-m",
            "1G",
            "-object",
            "memory-backend-ram,id=a,size=1G",
            "-device",
            "pc-dimm,memdev=a,id=d,addr=zz",
        ],
        [
            "-machine",
            "q35,memory-backend=a",
            "-m",
            "1G",
            "-object",
            "memory-backend-ram,id=a,size=2G",
        ],
    ],
)
def test_refused(arguments: list[str]) -> None:
    with pytest.raises(MemoryAccessError):
        layout_of(["qemu", *arguments])


def test_options() -> None:
    assert parse_option("guest=a,,b,debug-threads=on", "") == {
        "guest": "a,b",
        "debug-threads": "on",
    }
    assert parse_option("q35,usb=off", "type") == {"type": "q35", "usb": "off"}
    assert parse_option('{"a":1,"b":true,"c":{"d":2}}') == {"a": "1", "b": "on"}
    assert parse_option("{broken") == {}
    assert [parse_size(s) for s in ("1k", "0x10", "1.5M", "7")] == [1024, 16, 1572864, 7]
    assert parse_size("512", unit="m") == 512 << 20


@given(st.lists(st.one_of(st.sampled_from(
    ["-machine", "q35", "-m", "-object", "-numa", "-device", "pc-dimm,memdev=a,addr=zz", "1G",
     "memory-backend-ram,id=a,size=1G", "node,memdev=a", "size=1G,slots=x,maxmem=1T", "{}", "[]"]),
    st.text(max_size=20)), max_size=12), st.text(max_size=40))  # fmt: skip
def test_no_command_line_breaks_it(arguments: list[str], xml: str) -> None:
    with contextlib.suppress(VirtIntrospectError):
        layout_of(["qemu", *arguments], xml)


@pytest.mark.parametrize(
    ("architecture", "machine", "start"),
    [
        ("aarch64", "virt-7.2", GIB),
        ("arm", "virt", GIB),
        ("riscv64", "virt", 2 * GIB),
    ],
)
def test_other_architectures(architecture: str, machine: str, start: int) -> None:
    command = [f"/usr/bin/qemu-system-{architecture}", "-machine", f"{machine},gic-version=3"]
    assert layout_of([*command, "-m", "8G"]).pieces == (Piece(start, start + 8 * GIB, 0, 0),)
    with pytest.raises(MemoryAccessError, match="memory map is not known"):
        layout_of([command[0], "-machine", "raspi3b", "-m", "1G"])


@pytest.mark.parametrize(
    "text", ["9" * 5000, "1." + "0" * 5000, "0x" + "f" * 5000, "9" * 400 + ".5"]
)
def test_numbers_of_thousands_of_digits(text: str) -> None:
    with pytest.raises(MemoryAccessError) as caught:
        parse_size(text)
    assert len(caught.value.message) < 200
    with pytest.raises(MemoryAccessError) as caught:
        layout_of(["qemu", "-machine", text, "-m", "1G"])
    assert len(caught.value.message) < 200
