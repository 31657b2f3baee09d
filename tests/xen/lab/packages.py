"""Xen and its tools from Debian's packages, unpacked into a tree of their own."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.guests.lab import apt
from tests.guests.lab.kernels import Kernel
from tests.guests.lab.paths import cache, locked

_SUITE = "bookworm"
_PACKAGES = (
    "xen-hypervisor-4.17-amd64", "xen-utils-4.17", "xenstore-utils", "libxendevicemodel1",
    "libxencall1", "libxenforeignmemory1", "libxenstore4", "libvirt-daemon-driver-xen",
)  # fmt: skip
#: The device model of HVM guests, and its firmware.
_FOR_HVM = ("qemu-system-xen", "seabios")
#: Seconds after which a tree of other packages is nobody's.
_OLD = 86400
#: Nobody reads it.
_UNREAD = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/zoneinfo")
_LZ4, _LZ4_BLOCK = b"\x02\x21\x4c\x18", 8 << 20
_HYPERVISOR = "boot/xen-4.17-amd64.gz"


def tree(*, hvm: bool = False) -> Path:
    """A folder with Xen's tools, their libraries, and ``xen``, the hypervisor as an ELF file.

    :param hvm: with what HVM guests need.
    :raises apt.NoSuchPackageError: Debian does not have them any more.
    """
    packages = apt.closure(_SUITE, (*_PACKAGES, *_FOR_HVM) if hvm else _PACKAGES)
    digest = hashlib.sha256(repr([p.name for p in packages]).encode()).hexdigest()[:20]
    target = cache() / "xen" / digest
    with locked("xen"):
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
                fresh = Path(scratch, "tree")
                fresh.mkdir(mode=0o755)
                for name in ("bin", "sbin", "lib", "lib64"):  # as on every Debian since 12
                    (fresh / "usr" / name).mkdir(parents=True)
                    (fresh / name).symlink_to(f"usr/{name}")
                for package in packages:
                    _unpack(package, fresh)
                for unread in _UNREAD:
                    shutil.rmtree(fresh / unread, ignore_errors=True)
                (fresh / "xen").write_bytes(gzip.decompress((fresh / _HYPERVISOR).read_bytes()))
                for old in target.parent.iterdir():
                    # Not one that a machine may be running from.
                    if old.name != Path(scratch).name and time.time() - old.stat().st_mtime > _OLD:
                        shutil.rmtree(old, ignore_errors=True)
                fresh.rename(target)
    return target


def _unpack(package: Path, target: Path) -> None:
    unpack = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(unpack, stdout=subprocess.PIPE) as process:
        subprocess.run(
            ["tar", "-x", "--keep-directory-symlink", "-C", str(target)],
            stdin=process.stdout, check=True, timeout=120,
        )  # fmt: skip
    if process.returncode:
        raise RuntimeError(f"{' '.join(unpack)} failed: exit status {process.returncode}")


def vmlinux(kernel: Kernel) -> Path:
    """The ELF file inside a bzImage: unpacking it in an emulated machine would take long.

    Where it lies is in the boot header (Documentation/arch/x86/boot.rst: setup_sects,
    payload_offset, payload_length).
    """
    image = kernel.vmlinuz.read_bytes()
    path = cache() / "built" / f"vmlinux-{hashlib.sha256(image).hexdigest()[:20]}"
    with locked("vmlinux"):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            offset, length = struct.unpack_from("<II", image, 0x248)
            start = ((image[0x1F1] or 4) + 1) * 512 + offset
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            fresh.write_bytes(_plain(image[start : start + length]))
            fresh.rename(path)
    return path


def _lz4(payload: bytes) -> Iterator[bytes]:
    """Blocks of LZ4's legacy frames (lib/decompress_unlz4.c): a size, then that many bytes."""
    from cramjam import lz4

    position = len(_LZ4)
    while position + 4 < len(payload):
        (size,) = struct.unpack_from("<I", payload, position)
        block = payload[position + 4 : position + 4 + size]
        yield bytes(lz4.decompress_block(block, output_len=_LZ4_BLOCK))
        position += 4 + size


def _plain(payload: bytes) -> bytes:
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        from zstandard import ZstdDecompressor

        return ZstdDecompressor().decompressobj().decompress(payload)
    if payload.startswith(_LZ4):
        return b"".join(_lz4(payload))
    raise RuntimeError(f"a kernel packed in an unknown way: {payload[:6]!r}")


def main() -> None:
    """Fetch Xen, so that no test waits for a download."""
    try:
        print(f"Xen: {tree()}", flush=True)
    except apt.NoSuchPackageError as error:
        print(f"Xen: {error}; its tests will be skipped", flush=True)


if __name__ == "__main__":
    main()
