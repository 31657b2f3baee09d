"""The hook that is shipped: where it is in an installation, and with which folders it works."""

from __future__ import annotations

import contextlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import virtintrospect
from virtintrospect.errors import VirtIntrospectError

#: After the main script and before most of the users' own, see libvirt's hooks.html.
NAME = "50-virtintrospect"

_SHIPPED = f"qemu.d/{NAME}"
_CONSTANT = re.compile(rb'^(RUN|SPOOL|STAMP) = "([^"\n]*)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Places:
    """Folders that hook and daemon share."""

    run: Path = Path("/run/virtintrospect")
    #: What the hook leaves while no daemon listens.
    spool: Path = Path("/var/lib/virtintrospect/spool")

    @property
    def stamp(self) -> Path:
        """Its modification time is when the hook last ran."""
        return self.spool.parent / "last-event"


def shipped() -> bytes:
    """The text of the hook as it is shipped.

    :raises VirtIntrospectError: it is not where an installation has it.
    """
    tried = []
    for folder in _folders():
        path = folder / _SHIPPED
        tried.append(str(path))
        with contextlib.suppress(OSError):
            return path.read_bytes()
    raise VirtIntrospectError(
        f"the hook is not part of this installation: {', '.join(tried)}",
        hint="install the package again",
    )


def with_places(text: bytes, places: Places) -> bytes:
    """The hook with these folders in it.

    :raises VirtIntrospectError: a path that cannot stand in it.
    """
    values = {b"RUN": places.run, b"SPOOL": places.spool, b"STAMP": places.stamp}
    for value in values.values():
        if not value.is_absolute() or re.search(r'["\\\n]', str(value)):
            raise VirtIntrospectError(f"{str(value)!r} cannot be a folder of the hook")

    def put(match: re.Match[bytes]) -> bytes:
        return b'%s = "%s"' % (match[1], str(values[match[1]]).encode())

    return _CONSTANT.sub(put, text)


def places_in(text: bytes) -> Places:
    """The folders that a hook works with."""
    found = {match[1]: Path(match[2].decode("utf-8", "replace")) for match in
             _CONSTANT.finditer(text)}  # fmt: skip
    usual = Places()
    return Places(found.get(b"RUN", usual.run), found.get(b"SPOOL", usual.spool))


def _folders() -> Iterator[Path]:
    """Folders that may hold the hooks: of a source tree, else of the installed package."""
    tree = Path(virtintrospect.__file__).parent.parent
    if (tree / "pyproject.toml").exists():
        yield tree / "hooks"
    from importlib.metadata import PackageNotFoundError, files

    with contextlib.suppress(PackageNotFoundError):
        for file in files("virtintrospect") or ():
            if file.match(f"share/virtintrospect/hooks/{_SHIPPED}"):
                yield Path(str(file.locate())).resolve().parent.parent
    for folder in (tree, Path(sysconfig.get_path("data"))):  # the first: pip install --target
        yield folder / "share/virtintrospect/hooks"
