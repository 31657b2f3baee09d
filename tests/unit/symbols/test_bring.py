"""Files that a person brings: ISF profiles, System.map, raw BTF, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.symbols.btf_blob import kernel
from tests.unit.symbols.isf_profile import profile
from tests.unit.symbols.small_vmlinux import BANNER, BUILD_ID, small_vmlinux
from virtintrospect.errors import CorruptDataError, NoSuchTargetError, UsageError
from virtintrospect.symbols import isf, vmlinux
from virtintrospect.symbols.bring import bring
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.types import Types

MAP = b"""0000000000000000 D __per_cpu_start
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81000040 t local_one
ffffffff8211ffe0 D linux_banner
ffffffff8211ffe0 D alias
ffffffff83830000 B _end
"""


def small() -> tuple[Btf, dict[str, Any]]:
    found = vmlinux.read(memoryview(small_vmlinux("-g")[0]))
    assert found.types is not None
    assert found.symbols is not None
    types = Btf.parse(found.types)
    return types, profile(types, found.symbols, found.banner)


def layouts(types: Types) -> dict[tuple[str, str], tuple[object, ...]]:
    """What an ISF profile can say of a struct: everything but the names of typedefs."""
    found: dict[tuple[str, str], tuple[object, ...]] = {}
    for name in ("task_struct", "cred", "list_head", "packed"):
        for member in types._members(*types.strip(types.find(name)), name, "").values():
            field = types._field(member, member.bit_offset)
            found[name, member.name] = (
                field.offset, field.size, field.kind, field.signed, field.bit_offset,
                field.bit_size, field.count, field.element_size,
            )  # fmt: skip
    return found


def test_a_profile_says_what_the_types_said_that_it_was_made_from() -> None:
    types, document = small()
    brought = isf.read(json.dumps(document).encode())
    assert brought.types is not None
    again = Btf.parse(brought.types)
    assert layouts(again) == layouts(types)
    assert again.sizeof("kuid_t") == 4
    assert again.enumerators("pid_type") == types.enumerators("pid_type")
    assert again.describe("task_struct").members[7].name == ""
    assert (brought.banner.decode(), brought.pointer_size) == (BANNER, 8)
    assert brought.symbols is not None
    assert brought.symbols.address("init_task") == document["symbols"]["init_task"]["address"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("user_types"),
        lambda d: d.update(user_types=[]),
        lambda d: d.update(user_types={}),
        lambda d: d["user_types"]["cred"].update(size=-1),
        lambda d: d["user_types"]["cred"].update(kind="enum"),
        lambda d: d["user_types"]["cred"]["fields"]["uid"].update(offset=1 << 60),
        lambda d: d["user_types"]["cred"]["fields"].update(uid=7),
        lambda d: d["enums"]["pid_type"]["constants"].update(PIDTYPE_PID=1 << 70),
        lambda d: d["base_types"]["pointer"].update(endian="big"),
        lambda d: d["symbols"].pop("_text"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(change: Callable[[Any], object]) -> None:
    _, document = small()
    change(document)
    with pytest.raises(CorruptDataError):
        isf.read(json.dumps(document).encode())


def test_nesting_that_never_ends_is_refused() -> None:
    _, document = small()
    deep: dict[str, Any] = {"kind": "base", "name": "void"}
    for _ in range(100):
        deep = {"kind": "pointer", "subtype": deep}
    document["user_types"]["cred"]["fields"]["uid"]["type"] = deep
    with pytest.raises(CorruptDataError, match="deep"):
        isf.read(json.dumps(document).encode())
    with pytest.raises(CorruptDataError, match="JSON"):
        isf.read(b'{"a":' * 200_000)


def test_system_map(tmp_path: Path) -> None:
    path = tmp_path / "System.map-6.1.0-57-amd64"
    path.write_bytes(MAP)
    brought = bring(path)
    assert (brought.release, brought.pointer_size, brought.types) == ("6.1.0-57-amd64", 8, None)
    symbols = brought.symbols
    assert symbols is not None
    assert [tuple(symbol) for symbol in symbols][3] == ("local_one", 0xFFFF_FFFF_8100_0040, "t")
    slid = symbols.slid(0xFFFF_FFFF_9000_0000)
    assert slid.address("linux_banner") == 0xFFFF_FFFF_9111_FFE0
    assert slid.address("__per_cpu_start") == 0
    assert slid.lookup(0xFFFF_FFFF_9111_FFE4) == ("linux_banner", 4)
    path.write_bytes(MAP.split(b"\n", 1)[1].replace(b"ffffffff", b""))
    assert bring(path, release="other").pointer_size == 4
    assert bring(path, release="other").release == "other"


@pytest.mark.parametrize(
    "content",
    [MAP.replace(b" T _", b" T x"), MAP + b"what is this\n", MAP + b"\n" + MAP],
    ids=["no _text", "no symbol", "an empty line"],
)
def test_a_system_map_that_makes_no_sense_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "System.map-6.1"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=r"System\.map-6\.1"):
        bring(path)


@pytest.mark.parametrize(
    ("ending", "pack"),
    [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)],
)
def test_compressed_files(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"System.map-6.1{ending}"
    path.write_bytes(pack(MAP))
    assert bring(path).release == "6.1"
    path = tmp_path / f"profile.json{ending}"
    path.write_bytes(pack(json.dumps(small()[1]).encode()))
    assert bring(path).banner.decode() == BANNER


def test_which_kernel_it_is_for_must_be_known(tmp_path: Path) -> None:
    path = tmp_path / "kernel.btf"
    path.write_bytes(kernel().build())
    with pytest.raises(UsageError) as caught:
        bring(path)
    assert "--build-id" in caught.value.hint
    with pytest.raises(UsageError, match="release"):
        bring(path, release="6.1")
    assert bring(path, build_id=BUILD_ID).build_id == BUILD_ID
    path.write_bytes(small_vmlinux("-g")[0])
    assert bring(path).build_id == BUILD_ID
    with pytest.raises(UsageError, match=BUILD_ID.hex()):
        bring(path, build_id=bytes(20))


@pytest.mark.parametrize("content", [b"", b"MZ" + bytes(1000), b"\0" * 64, b"hello\n"])
def test_files_of_other_kinds(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    with pytest.raises((UsageError, CorruptDataError)):
        bring(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NoSuchTargetError, match="No such file"):
        bring(tmp_path / "none")
    with pytest.raises(NoSuchTargetError):
        bring(tmp_path)
