"""Types and symbols out of ELF files, compared with what the compiled program says itself."""

from __future__ import annotations

import pytest

from tests.unit.symbols.small_vmlinux import BANNER, BASE, BUILD_ID, small_vmlinux
from virtintrospect.errors import CorruptDataError, VirtIntrospectError
from virtintrospect.symbols import vmlinux
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.types import Kind

VERSIONS = ["-gdwarf-2", "-gdwarf-3", "-gdwarf-4", "-gdwarf-5"]
KINDS = [*VERSIONS, "-gz", "-gdwarf64"]


def options(kind: str) -> tuple[str, ...]:
    return ("-gstrict-dwarf", kind) if kind in VERSIONS else ("-g", kind)


@pytest.fixture(params=KINDS)
def types(request: pytest.FixtureRequest) -> tuple[Btf, list[list[str]]]:
    content, said = small_vmlinux(*options(request.param))
    found = vmlinux.read(memoryview(content))
    assert found.types is not None
    assert found.format == "ELF with DWARF"
    return Btf.parse(found.types), said


def test_members_are_where_the_program_has_them(types: tuple[Btf, list[list[str]]]) -> None:
    btf, said = types
    seen = 0
    for words in said:
        if words[0] in ("task_struct", "cred", "packed"):
            (field,) = btf.resolve(words[0], words[1])
            assert (field.offset, field.size) == (int(words[2]), int(words[3])), words
            seen += 1
        elif words[0] == "size":
            assert btf.sizeof(words[1]) == int(words[2])
    assert seen == 16


def test_bit_fields_are_where_the_program_has_them(types: tuple[Btf, list[list[str]]]) -> None:
    btf, said = types
    for words in said:
        if words[0] == "field":
            (field,) = btf.resolve("task_struct", words[1])
            whole = int.from_bytes(bytes.fromhex(words[2]), "little")
            start = 8 * field.offset + field.bit_offset
            assert whole == ((1 << field.bit_size) - 1) << start, words[1]
    assert btf.resolve("task_struct", "sign")[0].signed
    assert not btf.resolve("task_struct", "late")[0].signed


def test_kinds_and_spelling(types: tuple[Btf, list[list[str]]]) -> None:
    btf, _ = types
    fields = {member.name: member.type for member in btf.describe("task_struct").members}
    assert fields["state"] == "volatile long int"
    assert fields["comm"] == "char[16]"
    assert fields["cred"] == "const struct cred *"
    assert fields["grid"] == "u32[3][5]"
    assert fields["function"] == "int (*)(struct task_struct *, const char *, ...)"
    assert fields["other"] == "struct never_defined *"
    assert btf.resolve("task_struct", "tail")[0].count == 0
    assert btf.resolve("task_struct", "yes")[0].kind is Kind.INT
    assert btf.resolve("task_struct", "real")[0].kind is Kind.FLOAT
    first, second = btf.resolve("task_struct", "cred.uid.val")
    assert (first.kind, second.type_name) == (Kind.POINTER, "u32")
    assert btf.enumerators("pid_type") == {
        "PIDTYPE_PID": 0, "PIDTYPE_TGID": 7, "PIDTYPE_LAST": -3,
    }  # fmt: skip
    assert btf.enumerators("large") == {"LARGE_ONE": 1, "LARGE_ALL": (1 << 64) - 1}


def test_symbols_banner_and_build_id() -> None:
    content, said = small_vmlinux("-g")
    found = vmlinux.read(memoryview(content))
    assert found.symbols is not None
    symbols = found.symbols
    assert symbols.base == BASE
    for words in said:
        if words[0] in ("symbol", "local"):
            assert symbols.address(words[1]) == int(words[2], 16)
    assert symbols.type_of("init_task") == "B"
    assert symbols.type_of("counter") == "b"
    assert symbols.type_of("main") == "T"
    assert symbols.lookup(symbols.address("main") + 1) == ("main", 1)
    assert found.build_id == BUILD_ID
    assert BASE < found.note < BASE + (1 << 20)
    assert (found.banner.decode(), found.pointer_size) == (BANNER, 8)


@pytest.mark.parametrize(
    ("flags", "hint"), [(("-g", "-c"), "vmlinux"), (("-s",), "debug package")], ids=str
)
def test_what_is_no_whole_kernel_is_refused(flags: tuple[str, ...], hint: str) -> None:
    if "-c" in flags:
        content = bytearray(small_vmlinux("-g")[0])
        content[16] = 1  # ET_REL
    else:
        content = bytearray(small_vmlinux(*flags)[0])
    with pytest.raises(CorruptDataError) as caught:
        vmlinux.read(memoryview(content))
    assert hint in caught.value.hint


def test_split_dwarf_is_refused_by_name() -> None:
    content, _ = small_vmlinux("-g", "-gsplit-dwarf")
    with pytest.raises(VirtIntrospectError, match=r"\.dwo"):
        vmlinux.read(memoryview(content))
