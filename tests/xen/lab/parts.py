"""What Xen guests are made of, built outside and handed to dom0 as JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.guests.lab.initramfs import Archive, initramfs, program, store
from tests.guests.lab.kernels import Kernel, kernel
from tests.guests.lab.runc import runc_files
from tests.xen.lab.packages import vmlinux

#: Environment variable with the JSON of :func:`parts`.
PARTS = "VIRTINTROSPECT_XEN_PARTS"
#: Environment variable: the guests that tests run on, as ``pvh-6.1,pv-6.1``.
GUESTS = "VIRTINTROSPECT_XEN_GUESTS"
#: Programs and modules that tests put into a guest: over its console they would take minutes.
_PROGRAMS = (
    "bpf", "container", "hang", "holder", "netlink", "nsinfo", "sockets", "swapped", "tasks",
    "timers",
)  # fmt: skip
_MODULES = ("overlay", "veth", "virtio_net")
_FOLDER = "lab/programs"


def parts(names: tuple[str, ...], *, whole: bool = False) -> str:
    """Kernels with their files, and where a guest finds what tests would put into it.

    :param whole: with a container runtime.
    """
    kernels = {}
    known: dict[str, str] = {}
    for name in names:
        image = kernel(name)
        files = [program(needed) for needed in _PROGRAMS]
        files += runc_files() if whole else []
        files += [image.modules[module][0] for module in image.load_order(_MODULES)]
        known |= {hashlib.sha256(path.read_bytes()).hexdigest(): path.name for path in files}
        plain, packed = str(vmlinux(image)), str(image.vmlinuz)
        kernels[name] = image.release, plain, str(_initramfs(image, files)), packed
    places = {digest: f"/{_FOLDER}/{name}" for digest, name in known.items()}
    return json.dumps({"kernels": kernels, "known": places})


def _initramfs(image: Kernel, files: list[Path]) -> Path:
    """The lab's initramfs with a second archive behind it, which Linux unpacks as well."""
    more = Archive()
    for path in files:
        more.program(f"{_FOLDER}/{path.name}", path)
    first = initramfs(image).read_bytes()
    return store("xen-initramfs", first + bytes(-len(first) % 512) + more.finish())
