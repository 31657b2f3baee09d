"""Who may ask: the kernel says who is at the other end of the socket, the configuration who may."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import socket
import struct
from collections.abc import Iterable

_UCRED = struct.Struct("3i")
_log = logging.getLogger(__name__)


class Access:
    """The users and groups that the configuration allows, by name or number.

    A name that this host does not know is warned of, and allows nobody.
    """

    def __init__(self, users: Iterable[str], groups: Iterable[str]) -> None:
        self.uids = {os.geteuid(), *(uid for name in users for uid in _uid(name))}
        self.gids = {gid for name in groups for gid in _gid(name)}

    def allows(self, uid: int, gid: int) -> bool:
        """Whether a peer may ask."""
        if uid in self.uids or gid in self.gids:
            return True
        # Whoever may not ask must not make us look him up, in LDAP perhaps, for nothing.
        return bool(self.gids and self.gids & _groups_of(uid))


def peer(connection: socket.socket) -> tuple[int, int, int]:
    """PID, UID and GID of the process that connected (SO_PEERCRED, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return pid, uid, gid


def _groups_of(uid: int) -> set[int]:
    """A user's groups by the host's accounts: SO_PEERCRED tells the primary one alone."""
    try:
        account = pwd.getpwuid(uid)
        return set(os.getgrouplist(account.pw_name, account.pw_gid))
    except (KeyError, OSError):
        return set()


def _uid(name: str) -> Iterable[int]:
    if name.isdecimal():
        return (int(name),)
    try:
        return (pwd.getpwnam(name).pw_uid,)
    except KeyError:
        _log.warning("socket.users: this host has no user %r", name)
        return ()


def _gid(name: str) -> Iterable[int]:
    if name.isdecimal():
        return (int(name),)
    try:
        return (grp.getgrnam(name).gr_gid,)
    except KeyError:
        _log.warning("socket.groups: this host has no group %r", name)
        return ()
