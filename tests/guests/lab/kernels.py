"""Debian kernels by package, unpacked to what a guest needs.

One line of :data:`KERNELS` adds a kernel.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from . import apt
from .paths import cache, locked


@dataclass(frozen=True)
class Source:
    """Where a kernel comes from: a Debian suite and patterns of package names."""

    suite: str
    image: str
    modules: str = ""
    #: Modules kept besides :data:`MODULES`.
    more: tuple[str, ...] = ()
    #: Debian's name of the architecture.
    architecture: str = "amd64"
    #: Of the package with debug information, where the kernel itself tells too little.
    debug: str = ""


KERNELS = {
    "5.10": Source("bullseye", r"linux-image-5\.10\.[^-]*-\d+-cloud-amd64"),
    "6.1": Source("bookworm", r"linux-image-6\.1\.[^-]*-\d+-cloud-amd64"),
    "6.12": Source("bookworm", r"linux-image-6\.12\.[^-]*-cloud-amd64"),
    "7.2": Source(
        "sid", r"linux-binary-[7-9]\.[^-]*-cloud-amd64", r"linux-modules-[7-9]\.[^-]*-cloud-amd64"
    ),
    "6.1-full": Source("bookworm", r"linux-image-6\.1\.[^-]*-\d+-amd64"),
    "6.12-full": Source("bookworm", r"linux-image-6\.12\.[^-]*-amd64"),
    "6.1-rt": Source("bookworm", r"linux-image-6\.1\.[^-]*-\d+-rt-amd64"),
    "6.12-rt": Source("bookworm", r"linux-image-6\.12\.[^-]*-rt-amd64"),
    "6.1-debian": Source(  # for debian.py
        "bookworm",
        r"linux-image-6\.1\.[^-]*-\d+-cloud-amd64",
        more=("virtio_blk", "virtio_balloon"),
    ),
    "6.1-686": Source(
        "bookworm",
        r"linux-image-6\.1\.[^-]*-\d+-686",
        more=("crc32c_generic", "ext4"),
        architecture="i386",
        debug=r"linux-image-6\.1\.[^-]*-\d+-686-dbg",
    ),
    "6.1-686-pae": Source(
        "bookworm",
        r"linux-image-6\.1\.[^-]*-\d+-686-pae",
        more=("crc32c_generic", "ext4"),
        architecture="i386",
        debug=r"linux-image-6\.1\.[^-]*-\d+-686-pae-dbg",
    ),
    "6.1-arm64": Source(  # without KALLSYMS_ALL
        "bookworm",
        r"linux-image-6\.1\.[^-]*-\d+-cloud-arm64",
        more=("crc32c_generic",),
        architecture="arm64",
    ),
    "6.12-arm64": Source(
        "trixie",
        r"linux-image-6\.12\.[^-]*-cloud-arm64",
        more=("crc32c_generic",),
        architecture="arm64",
    ),
    "6.12-arm64-16k": Source(  # pages of 16 KiB
        "trixie",
        r"linux-image-6\.12\.[^-]*-arm64-16k",
        more=("crc32c_generic", "ext4"),
        architecture="arm64",
    ),
    "7.2-arm64": Source(
        "sid",
        r"linux-binary-[7-9]\.[^-]*-cloud-arm64",
        r"linux-modules-[7-9]\.[^-]*-cloud-arm64",
        more=("crc32c_generic",),
        architecture="arm64",
    ),
    "6.12-armmp-lpae": Source(
        "trixie",
        r"linux-image-6\.12\.[^-]*-armmp-lpae",
        more=("crc32c_generic", "ext4"),
        architecture="armhf",
        debug=r"linux-image-6\.12\.[^-]*-armmp-lpae-dbg",
    ),
    "6.12-armmp": Source(  # short descriptors
        "trixie",
        r"linux-image-6\.12\.[^-]*-armmp",
        more=("crc32c_generic", "ext4", "virtio_mmio"),
        architecture="armhf",
        debug=r"linux-image-6\.12\.[^-]*-armmp-dbg",
    ),
    "6.12-riscv64": Source("trixie", r"linux-image-6\.12\.[^-]*-riscv64", architecture="riscv64"),
    "6.1-dom0": Source(  # for tests/xen
        "bookworm",
        r"linux-image-6\.1\.[^-]*-\d+-amd64",
        more=("xen_privcmd", "xen_evtchn", "xenfs", "xen_gntdev", "xen_gntalloc"),
    ),
}

#: Modules kept from the packages, with all that they depend on. The first two are how a
#: guest talks to the lab; the others are there to be looked at, some with users (bridge → stp
#: → llc). A kernel may have some of them built in, or not at all.
MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "dummy",
    "loop",
    "bridge",
    "vxlan",
    "vsock_loopback",
    "nf_conntrack",
    "af_key",
    "overlay",
    "squashfs",
    "tun",
    "veth",
    "9pnet_virtio",
    "9p",
    "kvm_amd",
    "kvm_intel",
)

_KO = re.compile(r"(?P<name>[^/]+)\.ko(\.(xz|gz|zst))?")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel."""

    name: str
    #: As ``uname -r`` says inside the guest.
    release: str
    vmlinuz: Path
    #: Module name → (path of the plain .ko file, names of modules it needs).
    modules: dict[str, tuple[Path, tuple[str, ...]]]
    #: Debian's name of the architecture.
    architecture: str = "amd64"

    def load_order(self, names: tuple[str, ...]) -> list[str]:
        """``names`` and what they depend on, in an order in which they can be loaded.

        A module that this kernel does not have (built in, or dropped) is left out.
        """
        order: list[str] = []

        def add(name: str) -> None:
            if name in self.modules and name not in order:
                for needed in self.modules[name][1]:
                    add(needed)
                order.append(name)

        for name in names:
            add(name)
        return order


def kernel(name: str) -> Kernel:
    """The kernel of this name, downloaded and unpacked when it is not there yet.

    :raises apt.NoSuchPackageError: Debian does not have it any more.
    """
    source = KERNELS[name]
    target = cache() / "kernels" / name
    with locked(f"kernel-{name}"):
        wanted = [*MODULES, *source.more]
        if _wanted(target) != wanted:
            packages = apt.download(
                source.suite, [source.image, source.modules], source.architecture
            )
            _unpack(packages, target, wanted)
        about = json.loads((target / "kernel.json").read_text())
        if source.debug and not _brought(about["release"]).exists():
            _bring(source, _brought(about["release"]))
    return Kernel(
        name=name,
        release=about["release"],
        vmlinuz=target / "vmlinuz",
        modules={
            module: (target / f"{module}.ko", tuple(needed))
            for module, needed in about["modules"].items()
        },
        architecture=source.architecture,
    )


def _brought(release: str) -> Path:
    return cache() / "brought" / release


def _bring(source: Source, target: Path) -> None:
    """Keep the symbols and types of the debug package's vmlinux, and not the package."""
    from virtintrospect.symbols.bring import bring
    from virtintrospect.symbols.imports import Imports

    (package,) = apt.download(source.suite, [source.debug], source.architecture)
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
        vmlinux, found = Path(scratch, "vmlinux"), Path(scratch, "brought")
        unpack = ["dpkg-deb", "--fsys-tarfile", str(package)]
        with subprocess.Popen(unpack, stdout=subprocess.PIPE) as process, vmlinux.open("wb") as out:
            command = ["tar", "-xO", "--wildcards", "*/boot/vmlinux-*"]
            subprocess.run(command, stdin=process.stdout, stdout=out, check=True)
        Imports(found).add(bring(vmlinux), package.name)
        found.rename(target)
    package.unlink()


def teach(release: str) -> None:
    """Have virt-introspect know what was brought of a kernel, as ``symbols import`` would."""
    from virtintrospect.symbols.cachefiles import prepare
    from virtintrospect.symbols.store import default_directory

    directory = default_directory()
    if directory is None or not _brought(release).exists():
        return
    prepare(directory)
    for path in _brought(release).iterdir():
        if not (directory / path.name).exists():
            fresh = directory / f".{path.name}.{os.getpid()}-{threading.get_ident()}"
            shutil.copyfile(path, fresh)
            fresh.rename(directory / path.name)


def loose_module(name: str, module: str) -> bytes:
    """A module that guests do not have by themselves: its .ko out of the kernel's package.

    :raises FileNotFoundError: the package has no such module.
    """
    source = KERNELS[name]
    if kept := _kept(name):
        found = _member(kept, module)
    else:
        packages = apt.download(source.suite, [source.image, source.modules], source.architecture)
        # The lock: another process may be about to fetch the package anew.
        with locked(apt.lock_name(source.suite, source.architecture)):
            found = _member(packages, module)
    if not found:
        raise FileNotFoundError(f"{name}: no module {module}")
    return found


def _kept(name: str) -> list[Path]:
    """The packages that a kernel was unpacked from, where they are still there.

    Debian may have a newer one meanwhile, whose modules that kernel does not take.
    """
    kernel(name)
    about = json.loads((cache() / "kernels" / name / "kernel.json").read_text())
    packages = [cache() / "packages" / package for package in about["packages"]]
    return packages if all(package.exists() for package in packages) else []


def _member(packages: list[Path], module: str) -> bytes:
    """A module's .ko out of one of these packages; empty where none has it."""
    for package in packages:
        unpack = ["dpkg-deb", "--fsys-tarfile", str(package)]
        with subprocess.Popen(unpack, stdout=subprocess.PIPE) as process:
            names = [f"*/{module}.ko", f"*/{module}.ko.xz"]
            found = subprocess.run(
                ["tar", "-xO", "--wildcards", *names],
                stdin=process.stdout, capture_output=True, check=False,
            ).stdout  # fmt: skip
        if found:
            return lzma.decompress(found) if found.startswith(b"\xfd7zXZ") else found
    return b""


def _wanted(target: Path) -> list[str] | None:
    try:
        wanted: list[str] = json.loads((target / "kernel.json").read_text())["wanted"]
    except FileNotFoundError:
        return None
    return wanted


def _unpack(packages: list[Path], target: Path, wanted: list[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
        raw, done = Path(scratch, "raw"), Path(scratch, "done")
        raw.mkdir()
        done.mkdir()
        for package in packages:
            _extract(package, raw)
        found = {path.name.split(".ko")[0].replace("-", "_"): path for path in raw.glob("*.ko*")}
        modules: dict[str, list[str]] = {}
        todo = list(wanted)
        while todo:
            module = todo.pop()
            if module in modules or module not in found:
                continue
            content = _plain(found[module])
            (done / f"{module}.ko").write_bytes(content)
            modules[module] = _depends(content)
            todo += modules[module]
        image = next(raw.glob("vmlinuz-*"))
        shutil.move(image, done / "vmlinuz")
        about = {
            "release": image.name.removeprefix("vmlinuz-"),
            "packages": [package.name for package in packages],
            "wanted": wanted,
            "modules": modules,
        }
        (done / "kernel.json").write_text(json.dumps(about, indent=1))
        for path in (done, *done.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.rmtree(target, ignore_errors=True)
        done.rename(target)


def _extract(package: Path, raw: Path) -> None:
    """Put the kernel image and all modules of a package, flat, into ``raw``."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                path = Path(member.name)
                if not member.isfile():
                    continue
                name = path.name
                if name == "vmlinuz":  # usr/lib/modules/RELEASE/vmlinuz, as of Debian 14
                    name = f"vmlinuz-{path.parent.name}"
                elif name.startswith("vmlinux-"):  # not compressed, as RISC-V's
                    name = f"vmlinuz-{name.removeprefix('vmlinux-')}"
                if name.startswith("vmlinuz-") or _KO.fullmatch(name):
                    content = archive.extractfile(member)
                    assert content is not None
                    with (raw / name).open("wb") as out:
                        shutil.copyfileobj(content, out)
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: exit status {process.returncode}")


def _plain(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _depends(content: bytes) -> list[str]:
    """Modules that a module needs, from its .modinfo section (``depends=a,b``)."""
    match = re.search(rb"\0depends=([^\0]*)\0", content)
    text = match[1].decode() if match else ""
    return [name.replace("-", "_") for name in text.split(",") if name]


def main() -> None:
    """Fetch what the tests use, and compile, so that no test waits for it."""
    from .planted import KERNELS_OF_IT, planted
    from .runc import runc

    for name in KERNELS:
        try:
            print(f"kernel {name}: {kernel(name).release}", flush=True)
        except apt.NoSuchPackageError as error:
            print(f"kernel {name}: {error}; its tests will be skipped", flush=True)
    for name in KERNELS_OF_IT:
        try:
            planted(name)
        except apt.NoSuchPackageError as error:
            print(f"a module for kernel {name}: {error}; its test will be skipped", flush=True)
    try:
        runc()
    except apt.NoSuchPackageError as error:
        print(f"runc: {error}; its test will be skipped", flush=True)


if __name__ == "__main__":
    main()
