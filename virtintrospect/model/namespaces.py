"""Namespaces, and the containers that are made of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Namespace:
    """One row of ``namespaces``."""

    #: As in ``readlink /proc/PID/ns/TYPE``.
    inode: int
    #: cgroup, ipc, mnt, net, pid, time, user or uts.
    type: str
    #: How many processes are in it, threads that left their process not counted.
    processes: int
    #: The first of them.
    pid: int | None
    #: Inode number of the user namespace that it belongs to, of a user namespace its parent.
    user_namespace: int | None
    #: User id, of a user namespace: who made it, as the initial user namespace counts.
    owner: int | None
    #: Inode number of the namespace that it lies in: PID and user namespaces are nested.
    parent: int | None
    #: Virtual address of its structure.
    address: int
