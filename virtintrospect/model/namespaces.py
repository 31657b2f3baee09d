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


@dataclass(frozen=True, slots=True)
class Container:
    """One row of ``containers``."""

    #: 64 hexadecimal digits, or the name where the runtime goes by names; of an unknown runtime
    #: the namespace that makes it one, ``pid:[4026532177]``.
    id: bytes
    #: docker, podman, containerd, cri-o, kubernetes, systemd-nspawn, lxc, lxd, incus,
    #: libvirt-lxc or unknown.
    runtime: str
    name: bytes | None
    #: Of the Kubernetes pod that it belongs to.
    pod_uid: str | None
    #: Of its UTS namespace.
    hostname: bytes | None
    processes: int
    #: Its first process, as the guest's initial PID namespace counts.
    pid: int
    pids: tuple[int, ...]
    #: When its first process started: seconds since the epoch, UTC.
    started: int | None
    #: Bytes, by its own control group.
    memory_current: int | None
    #: Its own control group; of an unknown runtime that of its first process.
    cgroup_path: bytes | None
    #: Those that it does not share with process 1: ``pid:[4026532177]``.
    namespaces: tuple[str, ...]
    #: Its root directory within the file system that holds it, as /proc/PID/mountinfo has it.
    root: bytes | None
