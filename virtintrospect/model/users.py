"""Who uses a guest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class User:
    """One row of ``users``: credentials that processes have."""

    #: Real and effective, in the initial user namespace.
    uid: int
    gid: int
    euid: int
    egid: int
    #: Of ``uid``, where the guest has its /etc/passwd in memory.
    name: bytes | None
    processes: int


@dataclass(frozen=True, slots=True)
class Login:
    """One row of ``logins``: somebody who is logged in."""

    #: As osquery's logged_in_users has it: ``user``, or ``login`` for a terminal that waits.
    type: str
    user: bytes | None
    tty: bytes | None
    host: bytes | None
    #: Seconds since the epoch.
    time: float | None
    #: Of the process that leads the session.
    pid: int
    uid: int | None
    #: systemd's session, e.g. ``3`` of session-3.scope.
    session: bytes | None
    #: ``utmp``: the guest's own record; ``audit`` or ``cgroup``: what its processes carry.
    source: str
