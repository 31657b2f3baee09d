"""``--plot``: pictures as files."""

from __future__ import annotations

from pathlib import Path

from virtintrospect.errors import UsageError, VirtIntrospectError


def check(path: Path | None) -> None:
    """Refuse a name that does not say which kind of picture is wanted.

    :raises UsageError: it ends neither in ``.png`` nor in ``.svg``.
    """
    if path is not None and path.suffix not in (".png", ".svg"):
        raise UsageError(f"{path}: pictures are .png or .svg")


def write(path: Path, content: bytes) -> None:
    """Write a picture.

    :raises VirtIntrospectError: that cannot be done.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise VirtIntrospectError(f"cannot write {path}: {error.strerror}") from error
