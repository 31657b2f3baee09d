"""Every command on every kind of target, against docs/support.md.

A line of ``KINDS`` adds a target: its column, what it is, and how it is made.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import support
from virtintrospect.session import open_session

from .lab import images, matrix
from .lab.domain import Config
from .lab.guest import Guest
from .standalone import standalone
from .test_architectures import PAGE_MODES

#: A guest of its own for what taints the domain, or changes the guest.
TAINTED = Config("6.12", pti=False, cmdline="lab.sleepers=5")
#: virDomainCoreDumpFormat, and VIR_DUMP_MEMORY_ONLY.
_RAW, _KDUMP_ZLIB, _MEMORY_ONLY = 0, 1, 0x10


class Made:
    """Targets made of one running guest, each when it is first asked for."""

    def __init__(self, lab: object, folder: Path) -> None:
        self._lab = lab
        self.folder = folder
        #: What must be ended at last.
        self.stack = contextlib.ExitStack()

    def domain(self, config: Config = matrix.DEFAULT, *options: str) -> tuple[str, ...]:
        """A running domain, and options for every command."""
        return (self._lab.guest(config).name, *options)  # type: ignore[attr-defined]

    def dump(self, name: str, kind: int, flags: int) -> tuple[str]:
        """What ``virsh dump`` writes."""
        path = self.folder / name
        guest = self._lab.guest(matrix.DEFAULT)  # type: ignore[attr-defined]
        guest.domain.coreDumpWithFormat(str(path), kind, flags)
        return (str(path),)

    def standalone(self) -> tuple[str]:
        """A QEMU without libvirt."""
        return (self.stack.enter_context(standalone()).target,)

    @cached_property
    def core(self) -> str:
        """An ELF core, which other formats are made of."""
        return self.dump("guest.core", _RAW, _MEMORY_ONLY)[0]

    def converted(self, name: str, write: Callable[..., None], *arguments: str) -> tuple[str]:
        """The core in another format."""
        path = self.folder / name
        with open_session(self.core) as session:
            write(session.memory, path, *arguments)
        return (str(path),)

    def packed(self, name: str, *command: str) -> tuple[str]:
        """The core, compressed as a file."""
        path = self.folder / name
        with path.open("wb") as out:
            subprocess.run([*command, self.core], stdout=out, check=True)
        return (str(path),)


def write_raw(memory: object, path: Path) -> None:
    """A sparse file, each byte at its own address."""
    from virtintrospect.memory import PhysicalMemory

    assert isinstance(memory, PhysicalMemory)
    with path.open("wb") as file:
        for start, end in memory.resident():
            if start >= 1 << 32:
                continue
            for paddr in range(start, end, 1 << 20):
                data = memory.read(paddr, min(1 << 20, end - paddr))
                if data.count(0) != len(data):
                    file.seek(paddr)
                    file.write(data)
        file.truncate(memory.end)


class Kind(NamedTuple):
    """A column of docs/support.md."""

    name: str
    what: str
    #: Gives the TARGET, and options for every command; ``None`` where another test opens it.
    make: Callable[[Made], tuple[str, ...]] | None


KINDS = (
    Kind(
        "kvm-mmap",
        "a running domain with shared RAM (memfd); x86-64, Linux 6.12, 4 levels of page tables",
        lambda made: made.domain(),
    ),
    Kind(
        "kvm-process",
        "a running domain with anonymous RAM, libvirt's default; Linux 6.12, 5 levels",
        lambda made: made.domain(matrix.MATRIX[5]),
    ),
    Kind(
        "peek",
        "a running domain through libvirt, as one of another host or without privileges",
        lambda made: made.domain(matrix.DEFAULT, "--transport", "peek"),
    ),
    Kind(
        "monitor",
        "a running domain through QEMU's monitor, with `--allow-taint`",
        lambda made: made.domain(TAINTED, "--transport", "monitor", "--allow-taint"),
    ),
    Kind(
        "gdbstub",
        "a running domain through QEMU's gdb stub, with `--allow-taint`",
        lambda made: made.domain(TAINTED, "--transport", "gdbstub", "--allow-taint"),
    ),
    Kind("qmp", "a QEMU without libvirt; Linux 6.1", lambda made: made.standalone()),
    Kind("ELF", "`virsh dump --memory-only`", lambda made: (made.core,)),
    Kind(
        "kdump-zlib",
        "`virsh dump --memory-only --format kdump-zlib`, flattened as QEMU writes it",
        lambda made: made.dump("guest.kdump", _KDUMP_ZLIB, _MEMORY_ONLY),
    ),
    Kind(
        "kdump-zstd",
        "a kdump file as makedumpfile makes it, compressed by zstd",
        lambda made: made.converted("guest.zstd", images.write_kdump, "zstd"),
    ),
    Kind(
        "save stream",
        "`virsh dump` without `--memory-only`: QEMU's migration stream, as in `virsh save`",
        lambda made: made.dump("guest.stream", _RAW, 0),
    ),
    Kind("raw", "a sparse file of memory", lambda made: made.converted("guest.raw", write_raw)),
    Kind("LiME", "LiME's format", lambda made: made.converted("guest.lime", images.write_lime)),
    Kind(
        "AVML",
        "AVML's format, version 2",
        lambda made: made.converted("guest.avml", images.write_avml),
    ),
    Kind(
        "wrapped",
        "an ELF core in a `.gz` file",
        lambda made: made.packed("guest.core.gz", "gzip", "-1c"),
    ),
    Kind("/proc/vmcore", "what a crash kernel finds under that name; Linux 6.1", None),
    *(
        Kind(f"Xen {kind}{core}", f"{what} of Xen 4.17 ({kind}), {how}; Linux 6.1", None)
        for core, what, how in (
            ("", "a running guest", "read in domain 0"),
            (" core", "a guest", "as `xl dump-core` writes it"),
        )
        for kind in ("PV", "PVH")
    ),
    *(
        Kind(f"Linux {kernel}", f"a running domain with Debian's {kernel} kernel", None)
        for kernel in dict.fromkeys(
            config.kernel for config in (*matrix.MATRIX, matrix.ARM64, matrix.I386[0], *PAGE_MODES)
        )
    ),
)


@pytest.fixture(scope="module")
def made(lab: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    made = Made(lab, tmp_path_factory.mktemp("support"))
    with made.stack:
        yield made
    for path in made.folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("kind", [k for k in KINDS if k.make], ids=lambda kind: kind.name)
def test_every_command(kind: Kind, made: Made, tmp_path: Path) -> None:
    assert kind.make is not None
    target, *options = kind.make(made)
    support.check(kind.name, target, tmp_path, options=tuple(options))
    if Path(target).parent == made.folder and target != made.core:
        Path(target).unlink()


@pytest.mark.once_a_kernel(pti=False)
def test_every_command_on_every_kernel(guest: Guest, tmp_path: Path) -> None:
    support.check(f"Linux {guest.config.kernel}", guest.name, tmp_path)


def test_every_command_has_its_arguments() -> None:
    assert support.unanswered() == []


def test_the_page_is_as_it_would_be_written() -> None:
    text = support.PAGE.read_text(encoding="utf-8")
    columns = support.parse(text)
    assert support.render(columns) == text
    assert {kind.name for kind in KINDS} <= set(columns)
    for name, column in columns.items():
        assert set(support.commands()) <= set(column), name
