"""Types that were brought for kernels without BTF."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.symbols.btf_blob import kernel
from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.imported import SUFFIX, pack_types, unpack_types
from virtintrospect.symbols.store import Store

BUILD_ID = bytes(range(20))
BLOB = kernel().build()
FILE = b"".join(pack_types(BLOB, 4))


@pytest.mark.parametrize("pointer_size", [4, 8])
def test_what_was_added_is_found(tmp_path: Path, pointer_size: int) -> None:
    store = Store(tmp_path / "cache")
    assert store.types(BUILD_ID) is None
    store.add_types(BUILD_ID, BLOB, pointer_size=pointer_size)
    types, same = Store(tmp_path / "cache").types(BUILD_ID), Btf.parse(BLOB)
    assert types is not None
    assert types.pointer_size == pointer_size
    assert list(types.all_names()) == list(same.all_names())
    assert store.types(BUILD_ID[:-1]) is None
    assert store.remove_types(BUILD_ID)
    assert not store.remove_types(BUILD_ID)
    assert store.types(BUILD_ID) is None


def test_the_newest_replaces_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_types(BUILD_ID, BLOB, pointer_size=8)
    store.add_types(BUILD_ID, BLOB, pointer_size=4)
    types = store.types(BUILD_ID)
    assert types is not None
    assert types.pointer_size == 4
    assert [path.name for path in tmp_path.iterdir()] == [BUILD_ID.hex() + SUFFIX]


@pytest.mark.parametrize(
    ("build_id", "blob", "pointer_size"),
    [(b"", BLOB, 8), (bytes(65), BLOB, 8), (BUILD_ID, b"no BTF", 8), (BUILD_ID, BLOB, 2)],
)
def test_nonsense_is_not_kept(
    tmp_path: Path, build_id: bytes, blob: bytes, pointer_size: int
) -> None:
    with pytest.raises(CorruptDataError):
        Store(tmp_path).add_types(build_id, blob, pointer_size=pointer_size)
    assert not list(tmp_path.iterdir())


def test_without_a_cache_nothing_is_kept_in_silence() -> None:
    with pytest.raises(FileNotFoundError):
        Store(None).add_types(BUILD_ID, BLOB, pointer_size=8)
    assert Store(None).types(BUILD_ID) is None


def test_what_others_may_write_is_not_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_types(BUILD_ID, BLOB, pointer_size=8)
    (tmp_path / (BUILD_ID.hex() + SUFFIX)).chmod(0o666)
    assert store.types(BUILD_ID) is None


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255), st.integers(0, len(FILE) - 1))
def test_a_damaged_file_is_refused(position: int, flip: int, length: int) -> None:
    damaged = bytearray(FILE)
    damaged[position] ^= flip
    for data in (bytes(damaged), FILE[:length]):
        with pytest.raises(CorruptDataError):
            unpack_types(memoryview(data))
