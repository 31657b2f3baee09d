"""Debian packages of any suite, through an APT configuration of the lab's own.

The machine's package lists and sources stay as they are.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .paths import cache, locked

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRROR = "http://deb.debian.org"
_TIMEOUT = 600


class NoSuchPackageError(Exception):
    """Debian's archive answered, and the package is not there (any more)."""


def download(suite: str, patterns: list[str], architecture: str = "amd64") -> list[Path]:
    """The newest package that matches each pattern; empty patterns are skipped.

    :param architecture: Debian's name of it.
    :raises NoSuchPackageError: the archive has no such package.
    :raises RuntimeError: the archive cannot be reached.
    """
    with locked(lock_name(suite, architecture)):
        options = _options(suite, architecture)
        _update(suite, tuple(options))
        return [_fetch(suite, options, pattern) for pattern in patterns if pattern]


def closure(suite: str, names: Iterable[str]) -> list[Path]:
    """Packages and all that they depend on (not what they recommend), sorted by name.

    :raises NoSuchPackageError: the archive has no such package.
    :raises RuntimeError: the archive cannot be reached.
    """
    with locked(lock_name(suite, "amd64")):
        options = _options(suite, "amd64")
        _update(suite, tuple(options))
        folder = cache() / "packages"
        (folder / "partial").mkdir(parents=True, exist_ok=True)
        command = ["apt-get", *options, "-q", "-y", "-o", f"Dir::Cache::archives={folder}"]
        command += ["-o", "APT::Install-Recommends=false", "install", *names]
        done = _run([*command, "--simulate"])
        if "Unable to locate package" in done.stderr:
            raise NoSuchPackageError(f"Debian {suite}: {done.stderr.strip()}")
        wanted = re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", done.stdout, re.MULTILINE)
        fetched = _run([*command, "--download-only"])
        if done.returncode or fetched.returncode or not wanted:
            raise RuntimeError(f"cannot fetch {' '.join(names)}:\n{done.stderr}{fetched.stderr}")
        return sorted(
            folder / f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
            for name, version, architecture in wanted
        )


def lock_name(suite: str, architecture: str) -> str:
    """The lab's lock on a suite's lists, and on packages while they are fetched."""
    return f"apt-{_place(suite, architecture)}"


def _place(suite: str, architecture: str) -> str:
    return suite if architecture == "amd64" else f"{suite}-{architecture}"


def _options(suite: str, architecture: str) -> list[str]:
    root = cache() / "apt" / _place(suite, architecture)
    for folder in ("state/lists/partial", "cache/archives/partial", "parts"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    archives = [f"{_MIRROR}/debian {suite}"]
    # The security lists of these do not fit their index. For i386 and armhf the release is
    # enough, and it has the debug packages of just its kernels.
    if suite != "sid" and architecture not in ("i386", "armhf", "riscv64"):
        archives.append(f"{_MIRROR}/debian-security {suite}-security")
    lines = [f"deb [signed-by={_KEYRING}] {archive} main\n" for archive in archives]
    (root / "sources.list").write_text("".join(lines))
    settings = {
        "Dir::State": root / "state",
        "Dir::State::status": root / "status",
        "Dir::Cache": root / "cache",
        "Dir::Etc::sourcelist": root / "sources.list",
        "Dir::Etc::sourceparts": root / "parts",
        "Dir::Etc::preferencesparts": root / "parts",
        "Dir::Etc::preferences": root / "none",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "APT::Update::Error-Mode": "any",
        "APT::Update::Post-Invoke::": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "60",
    }
    return [text for key, value in settings.items() for text in ("-o", f"{key}={value}")]


@functools.cache  # once a process: lists do not get stale within a test run
def _update(suite: str, options: tuple[str, ...]) -> None:
    done = _run(["apt-get", *options, "-q", "update"])
    if done.returncode == 0:
        return
    output = done.stdout + done.stderr
    if " 404 " in output and "does not have a Release file" in output:
        raise NoSuchPackageError(f"Debian's archive no longer has the suite {suite}")
    raise RuntimeError(f"cannot fetch Debian's package lists for {suite}:\n{output}")


def _fetch(suite: str, options: list[str], pattern: str) -> Path:
    names = _run(["apt-cache", *options, "pkgnames"]).stdout.split()
    candidates = []
    for name in names:
        if re.fullmatch(pattern, name):
            shown = _run(["apt-cache", *options, "--no-all-versions", "show", name]).stdout
            if version := re.search(r"^Version: (.+)$", shown, re.MULTILINE):
                candidates.append((version[1], name))
    if not candidates:
        raise NoSuchPackageError(f"Debian {suite} has no package {pattern}")
    best = candidates[0]
    for candidate in candidates[1:]:
        if _newer(candidate[0], best[0]):
            best = candidate
    folder = cache() / "packages"
    folder.mkdir(exist_ok=True)
    printed = _run(["apt-get", *options, "-q", "--print-uris", "download", best[1]]).stdout
    match = re.search(r"^'[^']+' (\S+\.deb) ", printed, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"apt-get cannot say where {best[1]} is:\n{printed}")
    done = _run(["apt-get", *options, "-q", "download", best[1]], cwd=folder)
    if done.returncode:
        raise RuntimeError(f"cannot download {best[1]}:\n{done.stdout}{done.stderr}")
    return folder / match[1]


def _newer(version: str, than: str) -> bool:
    command = ["dpkg", "--compare-versions", version, "gt", than]
    return subprocess.run(command, check=False).returncode == 0


def _run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
