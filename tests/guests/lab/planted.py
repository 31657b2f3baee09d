"""A kernel module of the lab's own, built against Debian's headers: what audit rules must find."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

from . import apt
from .kernels import KERNELS, kernel
from .paths import HERE, cache, locked

_SOURCE = HERE / "rootkit" / "planted.c"
#: Kernels that it is built for, and the headers that all their flavours share.
KERNELS_OF_IT = ("6.1", "6.12")


def planted(name: str) -> bytes:
    """The module for one kernel of the lab, compiled when it is not there yet.

    :raises apt.NoSuchPackageError: Debian does not have the headers of this kernel any more.
    """
    release = kernel(name).release
    digest = hashlib.sha256(_SOURCE.read_bytes() + release.encode()).hexdigest()[:20]
    path = cache() / "built" / f"planted-{digest}.ko"
    with locked(f"headers-{name}"):
        if not path.exists():
            headers = _headers(name, release)
            path.parent.mkdir(exist_ok=True)
            fresh = path.with_name(f".{path.name}")
            fresh.write_bytes(_build(headers))
            fresh.rename(path)
    return path.read_bytes()


def _headers(name: str, release: str) -> Path:
    """Folder of the headers of a flavour, unpacked, with the tools that build with them."""
    root = cache() / "headers" / name
    found = root / "usr/src" / f"linux-headers-{release}"
    if found.exists():
        return found
    base = re.sub(r"-cloud-amd64$", "", release)
    tools = base if "+" in base else ".".join(base.split(".")[:2])
    names = [f"linux-headers-{release}", f"linux-headers-{base}-common", f"linux-kbuild-{tools}"]
    packages = apt.download(KERNELS[name].suite, [re.escape(one) for one in names])
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".headers-") as scratch:
        raw = Path(scratch, "raw")
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", package, raw], check=True, timeout=120)
        # The flavour's Makefile names the common one by its place on an installed system.
        makefile = raw / "usr/src" / found.name / "Makefile"
        makefile.write_text(makefile.read_text().replace("/usr/src/", f"{root}/usr/src/"))
        root.parent.mkdir(exist_ok=True)
        raw.rename(root)
    return found


def _build(headers: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="planted-") as scratch:
        Path(scratch, "planted.c").write_bytes(_SOURCE.read_bytes())
        Path(scratch, "Makefile").write_text("obj-m := planted.o\n")
        done = subprocess.run(
            ["make", "-C", headers, f"M={scratch}", "CC=gcc", "modules"],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the planted module does not compile:\n{done.stdout}{done.stderr}")
        return Path(scratch, "planted.ko").read_bytes()
