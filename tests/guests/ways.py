"""A guest that is changed and stopped, and the ways to open it."""

from __future__ import annotations

import time

from virtintrospect_kvm.qmp import LibvirtMonitor

from virtintrospect.connection import DomainLink
from virtintrospect.driver import Access
from virtintrospect.session import Session, open_session

from .lab.domain import Config
from .lab.guest import Guest

#: The guest of test_control*: the monitor taints it, so it is nobody else's. Its RAM is QEMU's
#: own; the guest that the tests share (``one_guest``) has RAM that is mapped here.
OURS = Config("6.12", backing="anonymous", pti=False, vcpus=2)
WRITE = Access(write=True)
TAINT = Access(taint=True)
STUB = Access(transport="gdbstub", taint=True, write=True)


def opened(guest: Guest, access: Access) -> Session:
    return open_session(guest.name, access=access)


def state(guest: Guest) -> str:
    return {1: "running", 3: "paused"}.get(guest.domain.state()[0], "?")


def wait_running(guest: Guest, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while state(guest) != "running":
        assert time.monotonic() < deadline, f"{guest.name} is still {state(guest)}"
        time.sleep(0.05)


def is_tainted(guest: Guest) -> bool:
    return "tainted" in guest.log


def panic_timeout(guest: Guest) -> int:
    return int(guest.run("cat /proc/sys/kernel/panic"))


#: A program that stands in a pause until it is killed; its arguments are TARGET and transport.
DIES = """
import os, sys
from virtintrospect.driver import Access
from virtintrospect.session import open_session
access = Access(transport=sys.argv[2] or None, taint=bool(sys.argv[2]))
with open_session(sys.argv[1], access=access) as session, session.paused():
    print("paused", flush=True)
    sys.stdin.read()
"""


def chardevs(guest: Guest) -> str:
    with open_session(guest.name) as session:
        assert session.domain is not None
        with DomainLink(session.domain) as link:
            return str(LibvirtMonitor(link).command("query-chardev"))
