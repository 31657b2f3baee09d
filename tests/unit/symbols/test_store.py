"""The cache, on a real file system, with real processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.symbols.btf_blob import kernel
from tests.unit.symbols.kallsyms_image import BASE, Variant, make_image, make_symbols
from tests.unit.symbols.test_btf import ask_everything
from virtintrospect.errors import FaultError
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.kallsyms import decode, find_tables
from virtintrospect.symbols.profile import Profile
from virtintrospect.symbols.store import MAX_VARIANTS, Store, default_directory, source_digest
from virtintrospect.symbols.table import Symbols

BUILD_ID = bytes.fromhex("256b7d531349c3a14d7071d6679c1bde961fcd09")


class Guest:
    """A guest whose kernel has kallsyms and, behind them, BTF."""

    def __init__(self, count: int = 1000, base: int = BASE) -> None:
        variant = Variant("new", 3, "percpu", base=base)
        self.base = base
        image, _ = make_image(variant, make_symbols(variant, count))
        self.btf_at = len(image)
        self.image = bytes(image) + kernel().build()
        self.tables = find_tables(self.image, base)

    def read(self, offset: int, length: int) -> memoryview:
        if offset + length > len(self.image):
            raise FaultError(offset, length)
        return memoryview(self.image)[offset : offset + length]

    def save(self, store: Store, build_id: bytes = BUILD_ID) -> Profile:
        raw = self.image[self.btf_at :]
        sources: list[tuple[int, bytes | memoryview]] = [*self.tables.sources(self.image)]
        sources.append((self.btf_at, raw))
        symbols = Symbols(decode(self.image, self.tables), self.base)
        return store.save(
            build_id, sources, symbols, Btf.parse(raw), {"release": "6.1", "note": 0x1234}
        )


GUEST = Guest()
LISTING = list(GUEST.save(Store(None)).symbols)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a" / "cache")


def profiles(store: Store) -> list[Path]:
    assert store.directory is not None
    return sorted(store.directory.glob("*.profile"))


def test_saved_and_found_again(store: Store) -> None:
    assert store.find(BUILD_ID, GUEST.read) is None
    saved = GUEST.save(store)
    found = store.find(BUILD_ID, GUEST.read)
    assert found is not None
    for profile in (saved, found):
        assert list(profile.symbols) == LISTING
        assert profile.types is not None
        assert profile.types.offsetof("task_struct", "comm") == 32
        assert profile.metadata == {"release": "6.1", "note": 0x1234}
    assert store.directory is not None
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert profiles(store)[0].stat().st_mode & 0o077 == 0
    assert profiles(store)[0].name.startswith(BUILD_ID.hex() + "-")


def test_notes_are_those_of_the_kernels_that_are_kept(store: Store) -> None:
    assert list(store.notes()) == list(Store(None).notes()) == []
    for number in (1, 2, 3):
        GUEST.save(store, bytes([number]) * 20)
    for age, path in enumerate(profiles(store)):
        os.utime(path, (1000 - age, 1000 - age))
    assert list(store.notes()) == [(0x1234, bytes([number]) * 20) for number in (1, 2, 3)]
    profiles(store)[1].write_bytes(b"damage")
    assert [build_id[0] for _, build_id in store.notes()] == [1, 3]


def test_another_boot_of_the_same_kernel_is_served(store: Store) -> None:
    GUEST.save(store)
    slid = Guest(base=BASE + 0x6400000)
    found = store.find(BUILD_ID, slid.read)
    assert found is not None
    fresh = Symbols(decode(slid.image, slid.tables), slid.base)
    assert list(found.symbols.slid(slid.base)) == list(fresh)


def test_a_kernel_without_btf(store: Store) -> None:
    symbols = Symbols(decode(GUEST.image, GUEST.tables), BASE)
    store.save(BUILD_ID, GUEST.tables.sources(GUEST.image), symbols, None, {})
    found = store.find(BUILD_ID, GUEST.read)
    assert found is not None
    assert found.types is None


def test_a_forged_kernel_does_not_blind_the_host_to_others(store: Store) -> None:
    forger = Guest(1001)
    forger.save(store)
    assert store.find(BUILD_ID, GUEST.read) is None
    GUEST.save(store)
    found = store.find(BUILD_ID, GUEST.read)
    assert found is not None
    assert list(found.symbols) == LISTING
    theirs = store.find(BUILD_ID, forger.read)
    assert theirs is not None
    assert list(theirs.symbols) != LISTING


def test_one_changed_byte_in_any_source_is_enough(store: Store) -> None:
    GUEST.save(store)
    sources = [*GUEST.tables.sources(GUEST.image), (GUEST.btf_at, GUEST.image[GUEST.btf_at :])]
    for start, content in sources:
        for position in (start, start + len(content) // 2, start + len(content) - 1):
            changed = bytearray(GUEST.image)
            changed[position] ^= 1
            assert store.find(BUILD_ID, lambda o, n, c=changed: bytes(c[o : o + n])) is None  # type: ignore[misc]


def test_a_guest_that_cannot_be_read_is_not_served(store: Store) -> None:
    def fault(offset: int, length: int) -> bytes:
        raise FaultError(offset, length)

    GUEST.save(store)
    assert store.find(BUILD_ID, fault) is None
    assert store.find(BUILD_ID, lambda _, length: bytes(length - 1)) is None
    assert store.find(BUILD_ID[1:], GUEST.read) is None
    assert store.find(b"", GUEST.read) is None


def test_nothing_is_kept_without_sources_or_directory(store: Store) -> None:
    symbols = Symbols(decode(GUEST.image, GUEST.tables), BASE)
    for keeper, sources in ((store, []), (store, [(-1, b"x")]), (store, [(0, b"")])):
        assert list(keeper.save(BUILD_ID, sources, symbols, None, {}).symbols) == LISTING
    assert profiles(store) == []
    assert Store(None).find(BUILD_ID, GUEST.read) is None


def test_few_variants_of_one_build_are_kept(store: Store) -> None:
    GUEST.save(store)
    for number in range(MAX_VARIANTS + 2):
        Guest(700 + number).save(store)
    assert len(profiles(store)) == MAX_VARIANTS
    assert store.find(BUILD_ID, GUEST.read) is None
    GUEST.save(store)
    assert store.find(BUILD_ID, GUEST.read) is not None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    GUEST.save(store, b"\1" * 20)
    size = profiles(store)[0].stat().st_size
    store.max_size = 3 * size + 100
    for number in (2, 3):
        GUEST.save(store, bytes([number]) * 20)
    for age, path in enumerate(reversed(profiles(store))):
        os.utime(path, (time.time() - 1000 - age, time.time() - 1000 - age))
    assert store.find(b"\1" * 20, GUEST.read) is not None
    GUEST.save(store, b"\4" * 20)
    kept = {number for number in range(1, 5) if store.find(bytes([number]) * 20, GUEST.read)}
    assert kept == {1, 3, 4}


def test_only_a_few_variants_are_tried(store: Store) -> None:
    GUEST.save(store)
    (genuine,) = profiles(store)
    os.utime(genuine, (1000, 1000))
    forger = Store(genuine.parent / "forger")
    Guest(700).save(forger)
    (forged,) = profiles(forger)
    for number in range(MAX_VARIANTS):
        copy = genuine.with_name(f"{BUILD_ID.hex()}-0000000{number}.profile")
        copy.write_bytes(forged.read_bytes())
        copy.chmod(0o600)
    assert store.find(BUILD_ID, GUEST.read) is None
    copy.unlink()
    assert store.find(BUILD_ID, GUEST.read) is not None


def test_the_digest_is_of_places_as_well() -> None:
    digests = {source_digest(s, lambda _, n: bytes(n)) for s in (((0, 4),), ((4, 4),), ((0, 5),))}
    assert len(digests) == 3


def test_leftovers_of_the_killed_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".new-old", tmp_path / ".new-new"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    GUEST.save(Store(tmp_path))
    assert not old.exists()
    assert new.exists()


def rewrite(store: Store, change: Callable[[bytearray], None]) -> None:
    (path,) = profiles(store)
    data = bytearray(path.read_bytes())
    change(data)
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o600)


DAMAGE: dict[str, Callable[[bytearray], None]] = {
    "emptied": lambda d: d.clear(),
    "cut in the prefix": lambda d: d.__delitem__(slice(10, None)),
    "cut in the header": lambda d: d.__delitem__(slice(100, None)),
    "cut in the sections": lambda d: d.__delitem__(slice(len(d) - 1, None)),
    "grown": lambda d: d.extend(b"x"),
    "magic": lambda d: d.__setitem__(0, 0),
    "version": lambda d: d.__setitem__(8, 99),
    "header length": lambda d: d.__setitem__(15, 0x7F),
    "checksum": lambda d: d.__setitem__(16, d[16] ^ 1),
    "header": lambda d: d.__setitem__(30, d[30] ^ 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_ignored_and_replaced(
    store: Store, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    GUEST.save(store)
    rewrite(store, DAMAGE[name])
    with caplog.at_level(logging.WARNING):
        assert store.find(BUILD_ID, GUEST.read) is None
    assert "is not used" in caplog.text
    GUEST.save(store)
    assert store.find(BUILD_ID, GUEST.read) is not None


def test_damaged_sections_give_at_worst_a_typed_error(store: Store) -> None:
    GUEST.save(store)
    (path,) = profiles(store)
    whole = path.read_bytes()
    start = whole.index(b"\0A", 24)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(start, len(whole) - 1), min_size=1, max_size=40))
    def check(positions: list[int]) -> None:
        data = bytearray(whole)
        for position in positions:
            data[position] ^= 0xA5
        other = path.with_name("other")
        other.write_bytes(data)
        other.chmod(0o600)
        other.replace(path)
        found = store.find(BUILD_ID, GUEST.read)
        if found is None:
            return
        for symbol in LISTING[::50]:
            found.symbols.get(symbol.name)
            found.symbols.lookup(symbol.address)
        if found.types is not None:
            ask_everything(found.types)

    check()


def test_files_that_others_may_write_are_not_believed(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    GUEST.save(store)
    (path,) = profiles(store)
    path.chmod(0o666)
    assert store.find(BUILD_ID, GUEST.read) is None
    path.chmod(0o600)
    assert store.directory is not None
    store.directory.chmod(0o777)
    assert store.find(BUILD_ID, GUEST.read) is None
    assert "may write" in caplog.text
    assert list(GUEST.save(store).symbols) == LISTING


def test_links_and_pipes_are_not_followed(store: Store, tmp_path: Path) -> None:
    GUEST.save(store)
    (path,) = profiles(store)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.find(BUILD_ID, GUEST.read) is None
    path.unlink()
    os.mkfifo(path, 0o600)
    assert store.find(BUILD_ID, GUEST.read) is None


@pytest.mark.parametrize("kind", ["file", "below a file", "missing drive"])
def test_a_place_that_is_no_directory(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    directory = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "cache",
        "missing drive": Path("/proc/nothing/cache"),
    }[kind]
    store = Store(directory)
    assert store.find(BUILD_ID, GUEST.read) is None
    assert list(GUEST.save(store).symbols) == LISTING
    assert "is not kept" in caplog.text


READ_ONLY = """
import os, sys
from pathlib import Path
from tests.unit.symbols.test_store import BUILD_ID, GUEST, LISTING
from virtintrospect.symbols.store import Store
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
store = Store(Path(sys.argv[1]))
assert store.find(BUILD_ID, GUEST.read) is None
assert list(GUEST.save(store, b"x" * 20).symbols) == LISTING
"""


def saves_nothing(script: str, directory: Path) -> None:
    """Run a script in a process of its own, which does what it must and says what it cannot."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "is not kept" in done.stderr


def test_a_directory_without_permission(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    GUEST.save(Store(cache))
    cache.chmod(0o500)
    saves_nothing(READ_ONLY, cache)


def test_no_space(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path;"
        "from tests.unit.symbols.test_store import GUEST, LISTING, BUILD_ID, Store;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        "store = Store(Path(sys.argv[1]));"
        "assert list(GUEST.save(store).symbols) == LISTING;"
        "assert list(Path(sys.argv[1]).iterdir()) == []"
    )
    saves_nothing(script, tmp_path)


def write_often(directory: Path, count: int) -> None:
    for _ in range(count):
        GUEST.save(Store(directory))


def test_many_writers_and_a_reader(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(tmp_path, 8)) for _ in range(4)]
    store, looks, served = Store(tmp_path), 0, 0
    GUEST.save(store)
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        looks += 1
        found = store.find(BUILD_ID, GUEST.read)
        if found is not None:
            assert found.symbols.address("_end") == LISTING[-1].address
            served += 1
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    # A folder in which files are renamed may be listed without one of them; and who looks may
    # have had no time for it before all was written.
    assert served or looks < 10
    assert len(list(tmp_path.iterdir())) == 1


def test_a_writer_that_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for delay in (0.0, 0.01, 0.02, 0.03):
        writer = context.Process(target=write_often, args=(tmp_path, 1000))
        writer.start()
        time.sleep(delay)
        writer.kill()
        writer.join(30)
        found = Store(tmp_path).find(BUILD_ID, GUEST.read)
        assert found is None or list(found.symbols) == LISTING
    assert list(GUEST.save(Store(tmp_path)).symbols) == LISTING


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIRTINTROSPECT_CACHE", str(tmp_path))
    assert default_directory() == tmp_path
    monkeypatch.delenv("VIRTINTROSPECT_CACHE")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory() == Path("/var/cache/virtintrospect")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_directory() == Path("/x/virtintrospect")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/h")
    assert default_directory() == Path("/h/.cache/virtintrospect")
