"""Guest-physical memory through QEMU's monitor: ``pmemsave`` into a file of ours, or ``xp``."""

from __future__ import annotations

import os
import re
import secrets
from typing import Any

from virtintrospect.errors import AccessDeniedError, FaultError, MemoryAccessError, TargetGoneError
from virtintrospect_kvm.qmp import Monitor

#: One pmemsave keeps QEMU's main loop, and with it devices, for so long as it takes: 3 ms.
MOST_SAVED = 1 << 20
#: A line of ``xp`` has 57 characters for 16 bytes.
MOST_PRINTED = 64 << 10

_LINE = re.compile(r"([0-9a-f]{16}): (0x[0-9a-f]{16}(?: 0x[0-9a-f]{16})?)")


class MonitorReader:
    """Reads memory by commands of a monitor.

    QEMU is given a memfd (``add-fd``) and told to save memory into it, by its name in
    ``/proc/self/fd``: nothing is written to a disk, and nobody else can see it. Where QEMU
    cannot take descriptors (libvirt on another host, before 8.2) or cannot open that name, the
    human monitor's ``xp`` prints memory instead; QEMU has no typed command for that.

    :param monitor: taken over.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self._file = -1
        self._set: int | None = None
        self._name = ""
        try:
            self._hand_over()
        except BaseException:
            self.close()
            raise

    @property
    def saves(self) -> bool:
        """Whether memory comes by ``pmemsave``, not as text."""
        return bool(self._name)

    def most(self) -> int:
        """Bytes that one :meth:`read` may ask for."""
        return MOST_SAVED if self._name else MOST_PRINTED

    def read(self, paddr: int, size: int) -> bytes:
        """Guest-physical memory.

        :raises FaultError: QEMU finds no memory there.
        :raises MemoryAccessError: and its subclasses, as of the monitor.
        """
        return self._save(paddr, size) if self._name else self._print(paddr, size)

    def close(self) -> None:
        """Take the file back from QEMU; closing twice is harmless."""
        number, self._set = self._set, None
        try:
            if number is not None:
                self.monitor.command("remove-fd", {"fdset-id": number})
        except MemoryAccessError:
            pass  # QEMU is gone, or its monitor: nothing is left to take back
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            self.monitor.close()

    def _hand_over(self) -> None:
        """Give QEMU the file, if it takes it and can write to it by name."""
        self._file = os.memfd_create("virtintrospect", os.MFD_CLOEXEC)
        # libvirt numbers its own sets from 0 on: one far above cannot become a part of those.
        number = secrets.randbelow(1 << 29) + (1 << 30)
        try:
            reply: Any = self.monitor.command("add-fd", {"fdset-id": number}, files=[self._file])
            self._set = number
            descriptor = reply["fd"]
            if not isinstance(descriptor, int):
                return
            self._name = f"/proc/self/fd/{descriptor}"
            self._save(0, 4096)
        except (TargetGoneError, AccessDeniedError):
            raise
        except (MemoryAccessError, LookupError, TypeError):
            self._name = ""

    def _save(self, paddr: int, size: int) -> bytes:
        arguments = {"val": paddr, "size": size, "filename": self._name}
        self.monitor.command("pmemsave", arguments)
        data = os.pread(self._file, size, 0)
        if len(data) != size or os.fstat(self._file).st_size != size:
            raise MemoryAccessError(f"QEMU did not save {size} bytes at {paddr:#x} into our file")
        os.ftruncate(self._file, 0)
        return data

    def _print(self, paddr: int, size: int) -> bytes:
        start = paddr & ~15
        length = -(-(paddr + size - start) // 16) * 16
        text = self.monitor.human(f"xp /{length // 8}xg {start:#x}")
        words = bytearray()
        for line in text.splitlines():
            match = _LINE.fullmatch(line.strip())
            if match is None or int(match[1], 16) != start + len(words):
                if "Cannot access memory" in line:
                    raise FaultError(start + len(words), size)
                raise MemoryAccessError(
                    f"QEMU's `xp` of {paddr:#x} does not print memory", hint="is it a QEMU?"
                )
            for word in match[2].split():
                words += int(word, 16).to_bytes(8, "little")
        if len(words) != length:
            raise MemoryAccessError(
                f"QEMU's `xp` prints {len(words)} bytes at {start:#x} instead of {length}"
            )
        return bytes(words[paddr - start : paddr - start + size])
