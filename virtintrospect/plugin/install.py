"""Putting the hooks into libvirt, and taking them out again.

Only files of ours are touched: ``DRIVER.d/50-virtintrospect``. The scripts of users,
``hooks/qemu`` above all, are theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.plugin import source
from virtintrospect.plugin.confinement import selinux_may_forbid
from virtintrospect.plugin.daemons import Daemon
from virtintrospect.plugin.hooks import DRIVERS, Hooks, content, is_ours

_DONE = {"create": "created", "update": "updated", "remove": "removed", "reload": "reloaded"}


@dataclass(frozen=True, slots=True)
class Action:
    """Something that was done, or would be."""

    action: str
    subject: str
    detail: str | None = None


class Installer:
    """Installs and removes; says what it does.

    :param dry_run: only say what would be done.
    """

    def __init__(self, hooks: Hooks, *, dry_run: bool = False) -> None:
        self.hooks = hooks
        self.dry_run = dry_run
        self._actions: list[Action] = []
        self._made: list[str] = []

    def install(self) -> list[Action]:
        """Put the hooks in place; what is right already stays.

        :raises VirtIntrospectError: something that is not ours is in the way, or no permission.
        """
        hooks, places = self.hooks, self.hooks.places
        text = source.with_places(source.shipped(), places)
        for driver in hooks.drivers:
            self._ours(hooks.path(driver))  # before anything is done
        blind = self._blind()
        with self._explained():
            self._folder(hooks.below(places.spool), 0o700)
            self._folder(hooks.below(places.run), 0o755)
            self._stamp(hooks.below(places.stamp))
            for driver in hooks.drivers:
                self._folder(hooks.path(driver).parent, 0o755)
                self._write(hooks.path(driver), text)
            for daemon in blind:
                self._reload(daemon)
            self._note()
        if domain := selinux_may_forbid(hooks.daemons(), hooks.root):
            advice = "may be forbidden to run hooks, and then starts no guest: see doctor"
            self._actions.append(Action("warning", f"SELinux domain {domain}", advice))
        return self._actions

    def remove(self) -> list[Action]:
        """Take out the hooks and all that installations made, waiting events included.

        :raises VirtIntrospectError: a file of that name is not ours, or no permission.
        """
        hooks, places = self.hooks, self.hooks.places
        installed = [p for p in map(hooks.path, DRIVERS) if self._ours(p) is not None]
        folders = [hooks.below(Path(name)) for name in hooks.noted("folders")]
        spool = hooks.below(places.spool)
        with self._explained():
            spooled = sorted(spool.iterdir()) if spool.is_dir() else []
            for path in [*installed, *spooled, hooks.below(places.stamp), hooks.notes]:
                if path.exists() and self._does("remove", path):
                    path.unlink(missing_ok=True)
            for folder in sorted(folders, key=lambda path: -len(path.parts)):
                self._remove_folder(folder)
        return self._actions

    def _blind(self) -> list[Daemon]:
        """Daemons of libvirt that do not know yet that there are hooks."""
        seen = self.hooks.seen_by
        return [
            daemon
            for daemon in self.hooks.daemons()
            if any(daemon.runs_hooks_of(d) and not seen(daemon, d) for d in self.hooks.drivers)
        ]

    def _does(self, action: str, subject: object, detail: str | None = None) -> bool:
        """Note a step; whether it is to be done."""
        said = f"would {action}" if self.dry_run else _DONE[action]
        self._actions.append(Action(said, str(subject), detail))
        return not self.dry_run

    def _folder(self, path: Path, mode: int) -> None:
        """Make a folder, and those above it, and remember which were not there."""
        if path.is_dir():
            return
        if path.parent != path:
            self._folder(path.parent, 0o755)
        if self._does("create", path):
            path.mkdir()
            path.chmod(mode)  # whatever the umask
            self._made.append(f"/{path.relative_to(self.hooks.root)}")

    def _stamp(self, path: Path) -> None:
        if not path.exists() and self._does("create", path):
            path.touch(0o600)
            os.utime(path, (0, 0))

    def _write(self, path: Path, text: bytes) -> None:
        """Put a hook in place.

        It is written outside its folder: libvirt runs every executable in there.
        """
        old = self._ours(path)
        if old == text and stat.S_IMODE(path.stat().st_mode) == 0o755:
            self._actions.append(Action("unchanged", str(path)))
        elif self._does("create" if old is None else "update", path):
            _replace(path, text, 0o755, by=path.parent.parent)

    @staticmethod
    def _ours(path: Path) -> bytes | None:
        """The text of an installed hook, ``None`` when there is none.

        :raises VirtIntrospectError: something else has its name.
        """
        if not path.is_symlink() and not path.exists():
            return None
        text = content(path)
        if text is None or not is_ours(text):
            raise VirtIntrospectError(
                f"{path} is not a hook of virtintrospect", hint="move it away, then try again"
            )
        return text

    def _reload(self, daemon: Daemon) -> None:
        name = f"{daemon.name}[{daemon.pid}]"
        if self._does("reload", name, "so that it looks for hooks; guests are not affected"):
            try:
                daemon.reload()
            except OSError as error:
                advice = f"{error.strerror}: run `systemctl reload {daemon.name}`"
                self._actions[-1] = Action("not reloaded", name, advice)

    def _note(self) -> None:
        """Note what a later removal, or a look at the status, cannot find out by itself."""
        hooks = self.hooks
        notes = {
            "folders": list(dict.fromkeys([*hooks.noted("folders"), *self._made])),
            "daemons": [daemon.key for daemon in hooks.daemons()],
        }
        if not self.dry_run:
            text = json.dumps(notes).encode()
            _replace(hooks.notes, text, 0o600, by=hooks.notes.parent)

    def _remove_folder(self, path: Path) -> None:
        if not path.is_dir():
            return
        if self.dry_run:
            self._actions.append(Action("would remove", str(path), "if it is empty"))
            return
        with contextlib.suppress(OSError):  # others have put something into it
            path.rmdir()
            self._actions.append(Action("removed", str(path)))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise VirtIntrospectError(
                f"{error.filename or self.hooks.folder}: {error.strerror}",
                hint="run as root" if os.geteuid() else "see that the file system is writable",
            ) from error


def _replace(path: Path, text: bytes, mode: int, *, by: Path) -> None:
    """Write a file whole or not at all.

    :param by: folder of the same file system where it is written first.
    """
    fresh = by / f".{path.name}.{os.getpid()}"
    try:
        with fresh.open("xb") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
