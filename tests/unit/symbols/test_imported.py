"""What was brought for kernels that do not explain themselves, as it is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.symbols.btf_blob import kernel
from tests.unit.symbols.small_vmlinux import BANNER, BASE, BUILD_ID, small_vmlinux
from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.symbols import imported, systemmap, vmlinux
from virtintrospect.symbols.brought import Brought
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.imports import Imports
from virtintrospect.symbols.profile import Profile
from virtintrospect.symbols.store import SharedStore, Store

BLOB = kernel().build()
RAW = Brought("BTF", types=BLOB, pointer_size=4, build_id=BUILD_ID)


def small() -> Brought:
    return vmlinux.read(memoryview(small_vmlinux("-g")[0]))


class Image:
    """The image of a kernel, which has what it has where it has it."""

    def __init__(self, brought: Brought, banner: str = BANNER) -> None:
        assert brought.symbols is not None
        self.note = brought.note - BASE
        self.banner = brought.symbols.address("linux_banner") - BASE
        self.content = bytearray(1 << 20)
        note = imported.build_id_note(BUILD_ID)
        self.content[self.note : self.note + len(note)] = note
        self.content[self.banner : self.banner + len(banner)] = banner.encode()

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.content):
            raise FaultError(offset, size, kind="image")
        return bytes(self.content[offset : offset + size])


@pytest.fixture
def imports(tmp_path: Path) -> Imports:
    return Imports(tmp_path / "cache")


@pytest.mark.parametrize("pointer_size", [4, 8])
def test_types_by_build_id(imports: Imports, pointer_size: int) -> None:
    assert imports.types(BUILD_ID) is None
    (about,) = imports.add(replace(RAW, pointer_size=pointer_size), "kernel.btf")
    assert (about.kernel, about.source, about.holds) == (BUILD_ID.hex(), "kernel.btf", ".types")
    types, same = Imports(imports.directory).types(BUILD_ID), Btf.parse(BLOB)
    assert types is not None
    assert types.pointer_size == pointer_size
    assert list(types.all_names()) == list(same.all_names())
    assert imports.types(BUILD_ID[:-1]) is None
    assert imports.forget(BUILD_ID.hex()) == [about]
    assert imports.forget(BUILD_ID.hex()) == []
    assert imports.types(BUILD_ID) is None


def test_nothing_is_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SharedStore(tmp_path)
    store.imports.add(RAW, "kernel.btf")
    monkeypatch.setattr(Btf, "parse", lambda *_: pytest.fail("parsed"))
    first = store.imports.types(BUILD_ID)
    assert first is not None
    assert store.imports.types(BUILD_ID) is first
    assert Store(tmp_path).imports.types(BUILD_ID) is not None
    monkeypatch.undo()
    store.imports.add(replace(RAW, pointer_size=8), "kernel.btf")
    second = store.imports.types(BUILD_ID)
    assert second is not None
    assert second.pointer_size == 8


@pytest.mark.parametrize("how", ["build id", "banner", "release"])
def test_symbols_fit_an_image_that_has_what_they_say(imports: Imports, how: str) -> None:
    brought = small()
    if how != "build id":
        brought = replace(brought, build_id=b"", note=0, types=None)
    if how == "release":
        brought = replace(brought, banner=b"", release="6.1.99-small")
    imports.add(brought, "vmlinux")
    image = Image(small())
    ((about, symbols),) = imports.symbols(image.read)
    assert about.release == "6.1.99-small"
    assert symbols.slid(BASE + 0x200000).address("_text") == BASE + 0x200000
    position = image.note + 20 if how == "build id" else image.banner + 16
    image.content[position] ^= 1
    assert list(imports.symbols(image.read)) == []
    image.content.clear()
    assert list(imports.symbols(image.read)) == []
    assert {row.kernel for row in imports.forget("6.1.99-small")} == {about.kernel}


def test_types_by_banner(imports: Imports) -> None:
    imports.add(replace(small(), build_id=b"", note=0), "profile.json")
    assert imports.types(b"", BANNER.encode()) is not None
    assert imports.types(BUILD_ID, BANNER.encode()) is not None
    assert imports.types(BUILD_ID, b"Linux version 6.1.99-other") is None
    assert {row.holds for row in imports.all()} == {".types", ".symbols"}


def test_a_profile_with_brought_symbols_goes_with_them(tmp_path: Path) -> None:
    store, brought, image = Store(tmp_path), small(), Image(small())
    about = next(row for row in store.imports.add(brought, "vmlinux") if row.holds == ".symbols")
    ((_, symbols),) = store.imports.symbols(image.read)
    region = (image.note, image.read(image.note, 36))
    metadata = {"note": image.note, "brought": [about.kernel, about.checksum]}
    store.save(BUILD_ID, [region], symbols, None, metadata)
    assert isinstance(store.find(BUILD_ID, image.read), Profile)
    store.imports.forget(about.kernel)
    assert store.find(BUILD_ID, image.read) is None
    assert not list(tmp_path.glob("*.profile"))


def test_other_symbols_take_the_place_of_the_first_at_once(tmp_path: Path) -> None:
    store, image, found = SharedStore(tmp_path), Image(small()), list[int]()
    text = "".join(f"{s.address:016x} {s.type} {s.name}\n" for s in small().symbols or ())
    for number in (1, 2):
        content = f"{text}{number:016x} A number\n".encode()
        brought = systemmap.read(content, "System.map-6.1.99-small")
        (about,) = store.imports.add(brought, "System.map")
        assert brought.symbols is not None
        region = (image.note, image.read(image.note, 36))
        metadata = {"note": image.note, "brought": [about.kernel, about.checksum]}
        store.save(BUILD_ID, [region], brought.symbols, None, metadata)
        profile = store.find(BUILD_ID, image.read)
        assert profile is not None
        found.append(profile.symbols.address("number"))
    assert found == [1, 2]


@pytest.mark.parametrize(
    "bad",
    [
        replace(RAW, build_id=b""), replace(RAW, build_id=bytes(65)), replace(RAW, types=b"no BTF"),
        replace(RAW, pointer_size=2), replace(RAW, build_id=b"", release="../../etc"),
        replace(RAW, build_id=b"", release="a/b"),
    ],
)  # fmt: skip
def test_nonsense_is_not_kept(imports: Imports, bad: Brought) -> None:
    with pytest.raises(CorruptDataError):
        imports.add(bad, "file")
    assert imports.all() == []


def test_without_a_cache_nothing_is_kept_in_silence() -> None:
    with pytest.raises(FileNotFoundError):
        Imports(None).add(RAW, "file")
    assert Imports(None).types(BUILD_ID) is None
    assert not Imports(None).all()
    assert not list(Imports(None).symbols(lambda *_: b""))


def test_what_others_may_write_is_not_used(imports: Imports) -> None:
    imports.add(RAW, "file")
    assert imports.directory is not None
    (path,) = imports.directory.iterdir()
    path.chmod(0o666)
    assert imports.types(BUILD_ID) is None
    assert imports.all() == []
    path.chmod(0o600)
    assert len(imports.all()) == 1
    imports.directory.chmod(0o777)
    assert imports.types(BUILD_ID) is None


def test_a_file_under_another_name_is_not_used(imports: Imports) -> None:
    imports.add(RAW, "file")
    assert imports.directory is not None
    (path,) = imports.directory.iterdir()
    path.rename(path.with_name(f"{'00' * 20}.types"))
    assert imports.all() == []


FILES = {ending: b"".join(pieces) for ending, pieces in imported.pack(small(), "vmlinux")}


@pytest.mark.parametrize("ending", [".types", ".symbols"])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_refused(ending: str, data: st.DataObject) -> None:
    file = FILES[ending]
    position = data.draw(st.integers(0, len(file) - 1))
    damaged = bytearray(file)
    damaged[position] ^= data.draw(st.integers(1, 255))
    unpack = imported.types if ending == ".types" else imported.symbols
    try:
        unpack(memoryview(bytes(damaged)))
    except CorruptDataError:
        pass
    else:  # what lies between the sections means nothing
        assert position >= len(file) - 8 or file[position] == 0
    with pytest.raises(CorruptDataError):
        unpack(memoryview(file[:position]))
