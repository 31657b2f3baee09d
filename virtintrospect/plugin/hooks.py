"""The hooks of a host: where they are, how they are, and whether libvirt knows of them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtintrospect.plugin import source
from virtintrospect.plugin.daemons import Daemon, running
from virtintrospect.plugin.source import NAME, Places

#: Our names of drivers, and libvirt's of their hooks.
DRIVERS = {"qemu": "qemu", "xen": "libxl"}

#: What says that libvirt can drive Xen here.
_LIBXL = (
    "usr/sbin/virtxend",
    "usr/lib*/libvirt/connection-driver/libvirt_driver_libxl.so",
    "usr/lib/*/libvirt/connection-driver/libvirt_driver_libxl.so",
)
_LEFT_OVER = (
    "~", ".bak", ".old", ".orig", ".save", ".swp", ".tmp", ".rpmnew", ".rpmsave", ".rpmorig",
    ".dpkg-dist", ".dpkg-new", ".dpkg-old", ".dpkg-tmp", ".ucf-dist", ".ucf-new", ".ucf-old",
)  # fmt: skip
_INSTALL = "virt-introspect hooks install"


@dataclass(frozen=True, slots=True)
class Status:
    """How the hook of one driver is."""

    driver: str
    path: str
    #: installed, missing, differs, not executable, foreign (a file that is not ours).
    state: str
    #: Whether libvirt knows that there are hooks; ``None``: no daemon runs that would call them.
    seen: bool | None
    #: The daemons of libvirt that run these hooks, as ``name[pid]``.
    daemon: str | None
    #: When libvirt last called a hook of ours, seconds since the epoch.
    last_event: int | None
    #: Events that wait for our daemon.
    spooled: int | None
    advice: str | None

    @property
    def good(self) -> bool:
        """Whether nothing is to be done about it."""
        return self.state == "installed" and self.seen is not False


class Hooks:
    """The hooks of one host.

    :param root: the host's root folder; another than ``/`` for an image or a package.
    :param places: folders of hook and daemon; ``None`` for those of the installed hook.
    :param xen: Xen's hook too, even where libvirt has no driver for it.
    """

    def __init__(
        self, root: Path = Path("/"), *, places: Places | None = None, xen: bool = False
    ) -> None:
        self.root = root
        #: libvirt's folder of hooks.
        self.folder = root / "etc/libvirt/hooks"
        self.places = places or self._installed_places()
        self._xen = xen

    def path(self, driver: str) -> Path:
        """Where the hook of a driver belongs."""
        return self.folder / f"{DRIVERS[driver]}.d" / NAME

    def below(self, path: Path) -> Path:
        """A path of the host as seen from here."""
        return self.root / path.relative_to("/")

    @property
    def drivers(self) -> list[str]:
        """The drivers that are to have a hook."""
        xen = self._xen or any(True for pattern in _LIBXL for _ in self.root.glob(pattern))
        return ["qemu", "xen"] if xen else ["qemu"]

    def daemons(self) -> list[Daemon]:
        """The daemons of libvirt that run these hooks."""
        return list(running(self.folder))

    def status(self) -> Iterator[Status]:
        """How the hooks are: that of QEMU, and that of Xen where it is or belongs."""
        shipped = source.shipped()
        daemons = self.daemons()
        for driver in DRIVERS:
            if driver in self.drivers or self.path(driver).exists():
                yield self._status(driver, shipped, daemons)

    def strays(self) -> Iterator[Path]:
        """Executables in the folders that an editor or a package manager seems to have left.

        libvirt runs every executable there, whatever it is called.
        """
        yield from (p for p in self._files() if is_left_over(p.name) and is_executable(p))

    def not_executable(self) -> Iterator[Path]:
        """Files that look like hooks and that libvirt skips."""
        yield from (p for p in self._files() if not is_left_over(p.name) and not is_executable(p))

    def seen_by(self, daemon: Daemon, driver: str) -> bool:
        """Whether a daemon knows that the driver has hooks, as far as can be told.

        It looks when it starts and at SIGHUP, for any executable (virHookInitialize and
        virHookCheck in src/util/virhook.c); hooks that are added later to a driver which had
        one are seen at once. We know of its start, of the SIGHUPs that an installation sent,
        and of the last time that it called us.
        """
        ours = self.path(driver)
        there = [path for path in self._files(driver) if is_executable(path)]
        if any(path.stat().st_ctime < daemon.started for path in there):
            return True
        if ours not in there:
            return False
        if daemon.key in self.noted("daemons"):
            return True
        called = self._last_event()
        return called is not None and called > max(daemon.started, ours.stat().st_ctime)

    def spooled(self) -> int | None:
        """How many events wait for our daemon; ``None`` when the spool cannot be looked at."""
        spool = self.below(self.places.spool)
        try:
            return sum(name.endswith(".json") for name in os.listdir(spool))  # noqa: PTH208
        except OSError:
            return None

    @property
    def notes(self) -> Path:
        """Where an installation notes what :meth:`noted` tells."""
        return self.below(self.places.spool.parent / "hooks.json")

    def noted(self, name: str) -> list[str]:
        """What an installation noted: ``folders`` that it made, ``daemons`` that know."""
        try:
            notes: Any = json.loads(self.notes.read_text())
        except (OSError, ValueError):
            return []
        found = notes.get(name) if isinstance(notes, dict) else None
        return [str(item) for item in found] if isinstance(found, list) else []

    def _status(self, driver: str, shipped: bytes, daemons: list[Daemon]) -> Status:
        path = self.path(driver)
        state, advice = self._state(path, shipped)
        mine = [daemon for daemon in daemons if daemon.runs_hooks_of(driver)]
        blind = [daemon for daemon in mine if not self.seen_by(daemon, driver)]
        if blind and state == "installed":
            advice = f"systemctl reload {blind[0].name} (kill -HUP {blind[0].pid})"
        called = self._last_event()
        return Status(
            driver=driver,
            path=str(path),
            state=state,
            seen=not blind if mine and state in ("installed", "differs") else None,
            daemon=",".join(f"{daemon.name}[{daemon.pid}]" for daemon in mine) or None,
            last_event=None if called is None else int(called),
            spooled=self.spooled(),
            advice=advice,
        )

    def _state(self, path: Path, shipped: bytes) -> tuple[str, str | None]:
        """The state of a hook's file, and what to do about it."""
        try:
            status = path.lstat()
        except OSError:
            return "missing", _INSTALL
        text = content(path)
        if text is None or not is_ours(text):
            return "foreign", f"not virtintrospect's: move it away, then {_INSTALL}"
        if not is_executable(path):
            return "not executable", _INSTALL
        usual = Places()
        if source.with_places(text, usual) != source.with_places(shipped, usual):
            return "differs", f"of another version, or changed: {_INSTALL}"
        if status.st_mode & 0o022 or status.st_uid != self.folder.stat().st_uid:
            return "differs", f"others may write to it: {_INSTALL}"
        return "installed", None

    def _last_event(self) -> float | None:
        try:
            return self.below(self.places.stamp).stat().st_mtime or None
        except OSError:
            return None

    def _files(self, driver: str | None = None) -> Iterator[Path]:
        """All files that libvirt might take for a hook."""
        for name in DRIVERS.values() if driver is None else [DRIVERS[driver]]:
            folder = self.folder / f"{name}.d"
            inside = sorted(folder.iterdir()) if folder.is_dir() else []
            yield from (path for path in [self.folder / name, *inside] if path.is_file())

    def _installed_places(self) -> Places:
        for driver in DRIVERS:
            text = content(self.path(driver))
            if text is not None and is_ours(text):
                return source.places_in(text)
        return Places()


def content(path: Path) -> bytes | None:
    """What is in a regular file; ``None`` when it is none, or cannot be read."""
    try:
        if stat.S_ISREG(path.lstat().st_mode):
            return path.read_bytes()
    except OSError:
        pass
    return None


def is_ours(text: bytes) -> bool:
    """Whether a file is a hook of virtintrospect, of whatever version."""
    return b"virt-introspectd" in text[:400]


def is_executable(path: Path) -> bool:
    """As libvirt sees it (virFileIsExecutable): a file that root may run."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and os.access(path, os.X_OK)


def is_left_over(name: str) -> bool:
    """Whether an editor or a package manager names files so."""
    return name.endswith(_LEFT_OVER) or name.startswith((".", "#"))
