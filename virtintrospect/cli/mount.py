"""``mount``: a guest's memory, tables and processes as files (FUSE)."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virtintrospect.cli.options import Settings, common, pass_settings, target_argument
from virtintrospect.errors import UsageError, VirtIntrospectError
from virtintrospect.insight.tables import INFO

if TYPE_CHECKING:
    from virtintrospect.cli.filesystem import GuestFiles

_DEVICE = Path("/dev/fuse")
#: What fuse_main() gives when a signal ended it: that is how a mount is meant to end.
_BY_SIGNAL = 8


@click.command("mount")
@target_argument
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@common
@pass_settings
def mount(settings: Settings, target: str, folder: Path) -> None:
    """Show TARGET as files in DIR, read-only, until Ctrl-C or `umount DIR`.

    `memory` is guest-physical memory, `tables` has each table as JSON and CSV, `processes` has
    a folder for each process: cmdline, maps and mem as in /proc, and its tables. A table is made
    when its file is opened. Only this user can look. Needs `pip install
    'virtintrospect[mount]'` and libfuse.

    \b
    virt-introspect mount web01 /mnt/web01
    jq '.[].path' /mnt/web01/tables/ps.json
    strings /mnt/web01/memory | grep -m1 BOOT_IMAGE
    """
    fuse = _library()
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", hint=f"mkdir {folder}")
    if not _DEVICE.exists():
        raise VirtIntrospectError(f"{_DEVICE} is missing", hint="modprobe fuse")
    from virtintrospect.cli.filesystem import GuestFiles

    with settings.open(target, INFO) as session:
        session.info()  # what cannot be recognised is said here, not by each file
        click.echo(f"{target} is in {folder}; Ctrl-C ends it", err=True)
        try:
            fuse.FUSE(
                _operations(fuse, GuestFiles(session)), str(folder), foreground=True,
                nothreads=True, direct_io=True, ro=True, fsname="virtintrospect",
            )  # fmt: skip
        except RuntimeError as error:
            if error.args != (_BY_SIGNAL,):
                raise VirtIntrospectError(
                    f"cannot mount at {folder} (fuse_main: {error})", hint="the lines above say why"
                ) from error


def _library() -> Any:
    """The binding of libfuse.

    :raises UsageError: it, or libfuse, is not installed.
    """
    try:
        import mfusepy
    except (ImportError, OSError) as error:
        raise UsageError(
            f"a mount needs mfusepy and libfuse ({error})",
            hint="pip install 'virtintrospect[mount]'; Debian's libfuse3-3",
        ) from error
    return mfusepy


def _operations(fuse: Any, files: GuestFiles) -> Any:
    """What libfuse asks for, as mfusepy wants it."""
    from virtintrospect.cli.filesystem import Reader

    class Operations(fuse.Operations):  # type: ignore[misc] # the library has no types here
        use_ns = True

        def __init__(self) -> None:
            self._open: dict[int, Reader] = {}
            self._next = 1

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:  # noqa: ARG002
            entry = _tried(fuse, lambda: files.entry(path))
            mode = stat.S_IFDIR | 0o500 if entry.folder else stat.S_IFREG | 0o400
            return {"st_mode": mode, "st_nlink": 2 if entry.folder else 1, "st_size": entry.size}

        def readdir(self, path: str, fh: int) -> list[str]:  # noqa: ARG002
            return [".", "..", *_tried(fuse, lambda: files.names(path))]

        def open(self, path: str, flags: int) -> int:  # noqa: ARG002
            number, self._next = self._next, self._next + 1
            self._open[number] = _tried(fuse, lambda: files.open(path))
            return number

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:  # noqa: ARG002
            found: bytes = _tried(fuse, lambda: self._open[fh](offset, size))
            return found

        def release(self, path: str, fh: int) -> int:  # noqa: ARG002
            self._open.pop(fh, None)
            return 0

    return Operations()


def _tried(fuse: Any, action: Any) -> Any:
    """An answer, or the error number that a caller of read() and its like shall have."""
    import errno

    try:
        return action()
    except OSError as error:
        raise fuse.FuseOSError(error.errno or errno.EIO) from error
    except VirtIntrospectError as error:
        raise fuse.FuseOSError(errno.EIO) from error
