"""What lies beside a dump: names that others took, and names that are more than a word."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_dump import MIB, NOTES, Pausing, memory_of
from virtintrospect.acquire import Origin, dump
from virtintrospect.cli.dump import _note_digest
from virtintrospect.errors import UsageError


@pytest.fixture
def origin() -> Origin:
    return Origin(Pausing(), "guest 1", notes=list(NOTES))


@pytest.mark.parametrize("force", [False, True])
def test_a_link_in_place_of_the_state_is_not_followed(
    tmp_path: Path, origin: Origin, *, force: bool
) -> None:
    """In a folder where others may write, somebody may have known the name."""
    others = tmp_path / "theirs"
    others.write_text("secret")
    (tmp_path / "out.part.state").symlink_to(others)
    dump(origin, tmp_path / "out", "elf", force=force)
    assert others.read_text() == "secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "theirs"]


def test_a_folder_that_cannot_be_synced(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dump is whole, and has its name."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    done = dump(origin, tmp_path / "out", "elf")
    assert done.sha256 == hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", [b"plain", b"no\xffUTF-8", b"two\nlines", b"back\\slash"])
def test_sha256sum_takes_every_name(tmp_path: Path, name: bytes) -> None:
    file = tmp_path / os.fsdecode(name)
    file.write_bytes(b"core")
    _note_digest(file, hashlib.sha256(b"core").hexdigest())
    subprocess.run(["sha256sum", "--status", "-c", f"{file}.sha256"], cwd=tmp_path, check=True)


def test_what_was_to_replace_a_dump_still_does_when_it_goes_on(
    tmp_path: Path, origin: Origin
) -> None:
    """``--force`` was said once; without it, what is there stays."""
    for force in (True, False):
        path = tmp_path / f"out{force}"
        if force:
            path.write_bytes(b"old")
        memory_of(origin).interrupt_at = 16 * MIB
        with pytest.raises(KeyboardInterrupt):
            dump(origin, path, "elf", force=force)
        path.write_bytes(b"old")
        memory_of(origin).interrupt_at = -1
        if force:
            assert dump(origin, path, "elf", resume=True).size == path.stat().st_size
        else:
            with pytest.raises(UsageError, match="there already"):
                dump(origin, path, "elf", resume=True)
            assert path.read_bytes() == b"old"
