"""Whether this machine can really run KVM guests."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import subprocess
import tempfile
from pathlib import Path

_DEBUG_EXIT_PORT, _VALUE = 0xF4, 0x10


@functools.cache
def kvm_works() -> bool:
    """Run a firmware of one instruction under KVM and see whether it was executed.

    /dev/kvm alone says little: it may be there and refuse (broken nesting). The probe runs as
    the user that libvirt gives its guests, who may have no right to open it.
    """
    user = _qemu_user()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or user is None:
        return False
    firmware = bytearray(65536)
    # The reset vector: mov al, VALUE; out PORT, al; hlt
    firmware[-16:-11] = bytes((0xB0, _VALUE, 0xE6, _DEBUG_EXIT_PORT, 0xF4))
    with tempfile.TemporaryDirectory(prefix="vi-lab-") as folder:
        bios = Path(folder, "bios")
        bios.write_bytes(firmware)
        Path(folder).chmod(0o755)
        command = (
            f"qemu-system-x86_64 -accel kvm -M pc -m 16 -display none -nodefaults -bios {bios} "
            f"-device isa-debug-exit,iobase={_DEBUG_EXIT_PORT:#x},iosize=1"
        )
        try:
            done = subprocess.run(
                command.split(),
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                capture_output=True,
                timeout=20,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == (_VALUE << 1 | 1)


def _qemu_user() -> pwd.struct_passwd | None:
    """The account of libvirt's QEMU processes: Debian's name, else Fedora's."""
    for name in ("libvirt-qemu", "qemu"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None
