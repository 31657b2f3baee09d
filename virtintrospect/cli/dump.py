"""``dump``: a guest's memory into a file."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virtintrospect.cli.options import Settings, common, pass_settings, target_argument
from virtintrospect.errors import OutputError, UsageError, VirtIntrospectError

if TYPE_CHECKING:
    from virtintrospect.acquire import Progress


#: Those of virtintrospect.acquire, which is loaded for this command only.
_FORMATS = ("elf", "raw", "lime")


@click.command("dump")
@target_argument
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(_FORMATS), default=_FORMATS[0], show_default=True,
    help="elf: with the kernel's own description of itself, and registers where they can be "
    "read; raw: the offset is the guest-physical address; lime: ranges, each behind a header.",
)  # fmt: skip
@click.option("--pause", is_flag=True, help="Stop the guest meanwhile; it goes on in any case.")
@click.option("--resume", is_flag=True, help="Go on with a dump to FILE that was interrupted.")
@click.option("--force", is_flag=True, help="Replace FILE, and an unfinished dump to it.")
@click.option("--no-hash", is_flag=True, help="Do not compute the SHA-256 of FILE.")
@common
@pass_settings
def dump(settings: Settings, /, target: str, file: Path, *, format_: str, **options: bool) -> None:
    """Write the memory of TARGET to FILE, while the guest runs on.

    Pages that the guest never used, and those of zeros, are holes of FILE. It is readable by its
    owner only, and has its name once it is whole; FILE.sha256 is for `sha256sum -c`. An image
    can be a TARGET, too: that changes its format.

    \b
    virt-introspect dump web01 web01.core
    virt-introspect dump web01 web01.core --resume
    virt-introspect dump web01 web01.lime --format lime --pause
    virt-introspect dump ./web01.core web01.raw --format raw
    """
    from virtintrospect.insight.columns import record
    from virtintrospect.insight.tables import DUMP

    if not file.name:
        raise UsageError("FILE has no name")
    if options["resume"] and options["force"]:
        raise UsageError("--resume and --force exclude each other")
    with settings.open(target, DUMP) as session, _interruptible(file), _progress() as progress:
        done = session.dump(
            file, format_, identity=_file_identity(target), pause=options["pause"],
            resume=options["resume"], force=options["force"], digest=not options["no_hash"],
            progress=progress,
        )  # fmt: skip
    _note_digest(file, done.sha256)
    settings.show(DUMP, [record(DUMP, done)], single=True)
    if done.unreadable:
        settings.warn([(f"{done.unreadable} bytes could not be read and are zeros in {file}", 0)])


def _file_identity(target: str) -> str:
    from virtintrospect.imagetarget import image_path

    path = image_path(target)
    if path is None or not path.exists():
        return target
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


@contextmanager
def _interruptible(file: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a dump in good order; then say how to go on."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except (KeyboardInterrupt, VirtIntrospectError):
        part = file.with_name(f"{file.name}.part.state")
        if part.exists():
            click.echo(f"unfinished: {part.stem} stays; --resume goes on with it", err=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("dump", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _note_digest(file: Path, sha256: str | None) -> None:
    """Put the hash where sha256sum looks for it; take an old one away."""
    import os

    beside = file.with_name(f"{file.name}.sha256")
    try:
        beside.unlink(missing_ok=True)
        if sha256 is None:
            return
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        name = os.fsencode(file.name)
        # As sha256sum writes names that do not fit a line.
        escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        mark = b"" if escaped == name else b"\\"
        with os.fdopen(descriptor, "wb") as out:
            out.write(b"%s%s  %s\n" % (mark, sha256.encode(), escaped))
    except OSError as error:
        raise OutputError(f"cannot write {beside}: {error.strerror}; the dump is whole") from error
