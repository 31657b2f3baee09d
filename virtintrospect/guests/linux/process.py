"""One process, by its pid."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError, NoSuchTargetError

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest


def find_process(guest: LinuxGuest, pid: int, members: Mapping[str, str]) -> dict[str, Any]:
    """Chosen members of a process's ``task_struct``, all of them integers, and its ``address``.

    :raises NoSuchTargetError: the guest has no such process.
    """
    addresses = guest.tasks.addresses()
    pids = guest.layout("task_struct", ["tgid"], ()).lists(guest.kernel, addresses, [])["tgid"]
    for address, found in zip(addresses, pids, strict=True):
        if found == pid:
            columns = guest.layout("task_struct", members, ()).lists(guest.kernel, [address], [])
            row = {name: column[0] for name, column in columns.items()}
            return row | {"address": address}
    raise NoSuchTargetError(f"the guest has no process {pid}", hint="`ps` shows those it has")


def find_user_process(guest: LinuxGuest, pid: int, members: Mapping[str, str]) -> dict[str, Any]:
    """As :func:`find_process`, of a process that has memory of its own (``mm`` and ``pgd``).

    :raises NoSuchTargetError: there is no such process, or it has no such memory.
    """
    wanted = {"mm": "mm", "pgd": "mm.pgd", "flags": "flags"} | dict(members)
    row = find_process(guest, pid, wanted)
    if not row["pgd"] or (row["flags"] or 0) & PF_KTHREAD:
        raise NoSuchTargetError(
            f"process {pid} has no memory of its own",
            hint="it is a kernel thread or a zombie",
        )
    return row


def process_at(guest: LinuxGuest, root: int) -> int:
    """The process whose top page table is at a physical address.

    With page-table isolation a process has two, side by side: CR3 in user mode has bit 12 set
    (PTI_USER_PGTABLE_BIT of arch/x86/entry/calling.h).

    :raises NoSuchTargetError: there is none.
    """
    layout = guest.layout("task_struct", {"pid": "tgid", "flags": "flags", "pgd": "mm.pgd"}, ())
    columns = layout.lists(guest.kernel, guest.tasks.addresses(), [])
    wanted = root & guest.kernel.mode.root_mask
    found: dict[int, int] = {}
    for pid, flags, pgd in zip(*columns.values(), strict=True):
        if pgd and not flags & PF_KTHREAD:
            with contextlib.suppress(FaultError):
                found.setdefault(guest.kernel.translate(pgd), pid)
    for place in (wanted, wanted & ~_USER_HALF):
        if place in found:
            return found[place]
    raise NoSuchTargetError(
        f"no process has its page tables at {wanted:#x}", hint="the kernel's own are nobody's"
    )


#: What CR3 has set in user mode under page-table isolation.
_USER_HALF = 0x1000
#: PF_KTHREAD (include/linux/sched.h): such a thread may borrow an mm for a while.
PF_KTHREAD = 0x0020_0000
