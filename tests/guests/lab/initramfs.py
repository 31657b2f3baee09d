"""Initramfs images: newc cpio archives, written here so that nothing needs to be root's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from . import apt
from .kernels import Kernel
from .paths import HERE, cache, locked

_DIRECTORY, _FILE, _LINK, _CHARACTER = 0o040000, 0o100000, 0o120000, 0o020000

_COMPILERS = {
    "amd64": "gcc",
    "i386": "i686-linux-gnu-gcc",
    "arm64": "aarch64-linux-gnu-gcc",
    "armhf": "arm-linux-gnueabihf-gcc",
    "riscv64": "riscv64-linux-gnu-gcc",
}

#: What every guest loads: (module, parameters).
STOCK_MODULES = (
    ("crc32c_generic", ""),  # others need it without saying so
    ("virtio_pci", ""),
    ("virtio_mmio", ""),  # where it is named in kernels.py
    ("virtio_console", ""),
    ("ext4", ""),  # built in, where it is not named in kernels.py
    ("dummy", "numdummies=2"),
    ("loop", ""),
    ("bridge", ""),
    ("vxlan", ""),
    ("vsock_loopback", ""),
    ("nf_conntrack", ""),
)


class Archive:
    """A newc cpio archive in the making."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0
        self._names: set[bytes] = set()

    def add(
        self,
        path: bytes | str,
        content: bytes = b"",
        mode: int = 0o644 | _FILE,
        *,
        owner: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        """Add one entry; its parent directories come by themselves."""
        name = os.fsencode(path).strip(b"/")
        if name in self._names:
            return
        parent = os.path.dirname(name)  # noqa: PTH120  # the name is bytes
        if parent:
            self.folder(parent)
        self._names.add(name)
        self._count += 1
        numbers = (self._count, mode, owner, owner, 1, 0, len(content), 0, 0, *device)
        fields = "".join(f"{number:08X}" for number in (*numbers, len(name) + 1, 0))
        self._parts += [_padded(b"070701" + fields.encode() + name + b"\0"), _padded(content)]

    def folder(self, path: bytes | str, mode: int = 0o755) -> None:
        """Add a directory."""
        self.add(path, mode=_DIRECTORY | mode)

    def link(self, path: bytes | str, target: bytes | str) -> None:
        """Add a symbolic link."""
        self.add(path, os.fsencode(target), _LINK | 0o777)

    def program(self, path: bytes | str, source: Path) -> None:
        """Add an executable from this machine."""
        self.add(path, source.read_bytes(), _FILE | 0o755)

    def node(self, path: str, major: int, minor: int) -> None:
        """Add a character device."""
        self.add(path, mode=_CHARACTER | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self.add("TRAILER!!!", mode=0)
        return b"".join(self._parts)


def initramfs(kernel: Kernel, modules: Iterable[tuple[str, str]] = STOCK_MODULES) -> Path:
    """The lab's initramfs for a kernel, built when its parts changed.

    :param modules: what to load besides their dependencies: (name, parameters).
    """
    architecture = kernel.architecture
    programs = {name: program(name, architecture) for name in ("init", "agent", "workload")}
    archive = Archive()
    for folder in ("dev", "proc", "sys", "tmp", "run", "mnt", "root"):
        archive.folder(folder)
    archive.node("dev/console", 5, 1)
    archive.program("bin/busybox", busybox(architecture))
    for applet in _applets(busybox()):
        archive.link(f"bin/{applet}", "busybox")
    archive.program("init", programs["init"])
    archive.program("lab/agent", programs["agent"])
    archive.program("lab/workload", programs["workload"])
    archive.add("etc/hostname", b"lab-guest\n")
    archive.add("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
    parameters = dict(modules)
    order = kernel.load_order(tuple(parameters))
    for module in order:
        archive.add(f"lab/{module}.ko", kernel.modules[module][0].read_bytes())
    lines = [f"{module} {parameters.get(module, '')}".strip() + "\n" for module in order]
    archive.add("lab/modules", "".join(lines).encode())
    return store("initramfs", archive.finish())


def store(kind: str, content: bytes) -> Path:
    """A file of the cache with this content, made when it is not there yet."""
    path = cache() / "built" / f"{kind}-{hashlib.sha256(content).hexdigest()[:20]}"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        # Threads of one process make it at the same time, too.
        fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        fresh.write_bytes(content)
        fresh.chmod(0o644)
        fresh.rename(path)
    return path


def program(name: str, architecture: str = "amd64") -> Path:
    """A static program of guest/NAME.c, compiled when its source changed."""
    sources = [HERE / "guest" / f"{name}.c", *sorted((HERE / "guest").glob("*.h"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    other = "" if architecture == "amd64" else f"-{architecture}"
    path = cache() / "built" / f"{name}{other}-{digest[:20]}"
    with locked("compile"):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            fresh = path.with_name(f".{path.name}")
            command = [
                _COMPILERS[architecture],
                "-static",
                "-O2",
                "-s",
                "-Wall",
                "-Wextra",
                "-pthread",
            ]
            subprocess.run([*command, "-o", fresh, sources[0]], check=True, timeout=120)
            fresh.rename(path)
    return path


def busybox(architecture: str = "amd64") -> Path:
    """A static busybox: this machine's, or Debian's of another architecture."""
    if architecture != "amd64":
        return _foreign_busybox(architecture)
    found = shutil.which("busybox", path="/bin:/usr/bin")
    if found is None:
        raise RuntimeError("busybox is missing: apt-get install busybox-static")
    return Path(found)


def _foreign_busybox(architecture: str) -> Path:
    path = cache() / "built" / f"busybox-{architecture}"
    with locked(f"busybox-{architecture}"):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            suite = "trixie" if architecture in ("armhf", "riscv64") else "bookworm"
            (package,) = apt.download(suite, ["busybox-static"], architecture)
            with tempfile.TemporaryDirectory(dir=cache(), prefix=".busybox-") as scratch:
                subprocess.run(["dpkg-deb", "-x", package, scratch], check=True, timeout=60)
                found = next(p for p in Path(scratch).glob("**/bin/busybox") if p.is_file())
                shutil.copyfile(found, fresh := path.with_name(f".{path.name}"))
            fresh.rename(path)
    return path


def _applets(path: Path) -> list[str]:
    listed = subprocess.run(
        [path, "--list"], capture_output=True, text=True, check=True, timeout=30
    )
    return [name for name in listed.stdout.split() if name != "busybox"]


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)
