"""A session: one target, opened, and the guest that was recognised in it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from virtintrospect.domain import Domain
from virtintrospect.domainxml import architecture
from virtintrospect.driver import (
    READ_ONLY,
    Access,
    Capability,
    SupportsPause,
    Target,
    driver_for,
    driver_for_url,
    refuse_unknown,
)
from virtintrospect.errors import (
    GuestNotRecognisedError,
    TargetGoneError,
    UsageError,
)
from virtintrospect.guests import identify
from virtintrospect.guests.base import Guest
from virtintrospect.guestview import GuestView
from virtintrospect.imagetarget import ImageTarget, image_path, open_image_target
from virtintrospect.memory import PhysicalMemory
from virtintrospect.model import Problem
from virtintrospect.space import AddressSpace, physical_space
from virtintrospect.symbols.store import Store, default_directory

if TYPE_CHECKING:
    from virtintrospect.acquire import Progress
    from virtintrospect.model import Match
    from virtintrospect.model.acquisition import Acquisition

_log = logging.getLogger(__name__)


class Pause:
    """How long a guest stood still; made by :meth:`Session.paused`.

    :param started: when it was asked to stop (:func:`time.monotonic`).
    """

    def __init__(self, started: float) -> None:
        self.started = started
        #: When it went on; ``None`` while it stands still.
        self.ended: float | None = None

    @property
    def seconds(self) -> float:
        """From the request to stop until the guest is known to go on, or until now."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started


class Session(GuestView):
    """A domain or an image, its memory, and the kernel that runs in it. A context manager.

    All tables and primitives of :class:`~virtintrospect.guests.base.Guest` are methods of the
    session, too: each call goes to the kernel that runs at that moment, so a session outlives
    reboots of its guest. :attr:`guest` is that kernel itself; what it gives is its own and
    means nothing after a reboot.

    **Threads.** A session's own methods may be called from several threads; they take turns.
    :attr:`guest`, and address spaces, types and symbols, belong to one thread at a time, or
    are used under :attr:`lock`. Sessions share nothing: for work at the same time, open one
    for each thread.

    :param target: taken over: closing the session closes the target.
    :param domain: the libvirt domain, where there is one.
    :param store: cache of kernels' symbols and types.
    """

    def __init__(self, target: Target, domain: Domain | None = None, store: Store | None = None):
        self.target = target
        self.domain = domain
        #: Held while a method of the session runs.
        self.lock = threading.RLock()
        self._store = Store(default_directory()) if store is None else store
        self._guest: Guest | None = None
        self._recognised = 0.0
        self._closed = False

    @property
    def guest(self) -> Guest:
        """The kernel that runs now: recognised at first use, and anew after a reboot.

        :raises GuestNotRecognisedError: no known kernel is running (yet).
        :raises UsageError: the session is closed.
        """
        return self.recognise()

    @property
    def current(self) -> Guest | None:
        """The kernel that was recognised last, where it still runs."""
        with self.lock:
            guest = self._guest
            if guest is not None and self.target.live and not guest.is_current():
                return None
            return guest

    @property
    def last(self) -> Guest | None:
        """The kernel that was recognised last, whether it still runs or not."""
        return self._guest

    def recognise(self, *, thorough: bool = True) -> Guest:
        """As :attr:`guest`; for those who ask again and again while a guest boots.

        :param thorough: also look where the cost grows with the guest's memory.
        :raises GuestNotRecognisedError: no known kernel is running (yet).
        :raises UsageError: the session is closed.
        """
        with self.lock:
            if self._closed:
                raise UsageError("the session is closed", hint="use it inside its `with` block")
            guest = self.current
            if guest is None:
                before = self._guest
                guest = identify(self.target, self._store, previous=before, thorough=thorough)
                self._guest, self._recognised = guest, time.monotonic()
            return guest

    @property
    def memory(self) -> PhysicalMemory:
        """Guest-physical memory."""
        return self.target.memory

    @property
    def physical(self) -> AddressSpace:
        """Guest-physical memory as an address space: it reads numbers, strings and arrays, too.

        No kernel needs to be recognised.
        """
        return physical_space(self.memory)

    def forget(self) -> None:
        """Drop all that is remembered of the guest: the next call looks anew.

        Of live memory nothing is kept but where it is: which pages the host has, and which
        kernel was recognised where. What belongs to a kernel's build, its symbols and types,
        stays on disk (:class:`~virtintrospect.symbols.store.Store`).
        """
        with self.lock:
            self.memory.forget()
            self._guest = None

    @property
    def age(self) -> float | None:
        """Seconds since the kernel was recognised: how old the oldest of what is kept can be.

        ``None`` where none has been, or all was dropped by :meth:`forget`.
        """
        return None if self._guest is None else time.monotonic() - self._recognised

    def dump(
        self,
        path: str | Path,
        format: str = "elf",  # noqa: A002 (it is what the user calls it)
        *,
        identity: str = "",
        pause: bool = False,
        resume: bool = False,
        force: bool = False,
        digest: bool = True,
        progress: Progress | None = None,
    ) -> Acquisition:
        """Write the memory to a file, while the guest runs: sparse, and whole or not at all.

        A guest that is not recognised is dumped, too; an ELF core then has no VMCOREINFO.

        :param format: ``elf``, ``raw`` or ``lime``.
        :param identity: what tells a target without a domain from others, for ``resume``.
        :param pause: let the guest stand still meanwhile; it goes on whatever happens.
        :param resume: go on with a dump that was interrupted.
        :param force: replace a file of that name, and an unfinished dump to it.
        :param digest: compute the SHA-256 of the file.
        :param progress: called with bytes done and altogether, now and then.
        :raises UsageError: the file is there already, or cannot be resumed; the target cannot
            be paused; there is no such format.
        :raises OutputError: the file cannot be written. What was copied stays in ``PATH.part``.
        :raises MemoryAccessError: the guest's memory is gone. The same holds.
        """
        from virtintrospect.acquire import dump, origin_of

        with self.lock:
            try:
                guest = self.guest
            except GuestNotRecognisedError as error:
                _log.warning("not recognised, and dumped all the same: %s", error)
                guest = None
            machine = ""
            if self.domain is not None:
                identity = f"{self.domain.uuid} {self.domain.id}"
                machine = architecture(self.domain.xml)
            return dump(
                origin_of(self.target, guest, identity, machine), Path(path), format,
                pause=pause, resume=resume, force=force, digest=digest, progress=progress,
            )  # fmt: skip

    def inner(self, wanted: str | int, *, take_over: bool = False) -> Session:
        """Open a guest that this one runs itself, by its own KVM.

        What its processors have not touched yet cannot be read; nor can it be changed or paused.

        :param wanted: its PID or name, as :meth:`nested` has them.
        :param take_over: closing it closes this session, which otherwise must outlive it.
        :raises NoSuchTargetError: there is none.
        :raises UsageError: several have that name.
        :raises MemoryAccessError: it has no nested tables.
        """
        from virtintrospect.nested import NestedTarget, choose

        mode, root = choose(self.nested(), str(wanted))
        closed = self.close if take_over else None
        return Session(NestedTarget(self.target, mode, root, closed), store=self._store)

    def write(
        self, address: int | str, data: bytes, *, pid: int | None = None, force: bool = False
    ) -> None:
        """Write to the kernel's memory, or to a process's.

        See :meth:`AddressSpace.write <virtintrospect.space.AddressSpace.write>` for what is
        refused, and for guest-physical addresses :meth:`PhysicalMemory.write
        <virtintrospect.memory.base.PhysicalMemory.write>`.

        :param address: virtual; or the name of a symbol.
        :param pid: in the address space of this process.
        :param force: also write where the guest's tables do not allow it.
        :raises UnsupportedError: the target cannot be changed, or was not opened for writing.
        :raises SymbolNotFoundError: the kernel has no symbol of that name.
        :raises NoSuchTargetError: there is no such process.
        """
        with self.lock:
            self.target.require(Capability.WRITE)
            guest = self.guest
            space = guest.kernel if pid is None else guest.process_space(pid)
            where = guest.symbols.address(address) if isinstance(address, str) else address
            space.write(where, data, force=force)

    @contextlib.contextmanager
    def paused(self) -> Iterator[Pause]:
        """Let the guest stand still in a ``with`` block; it goes on at its end, however it ends.

        A guest that was paused before stays so. Blocks may lie in each other.

        :returns: the pause, which measures its length.
        :raises UsageError: the session is closed.
        :raises UnsupportedError: the target cannot stop its guest.
        :raises AccessDeniedError: this user may not.
        """
        if self._closed:
            raise UsageError("the session is closed", hint="use it inside its `with` block")
        self.target.require(Capability.PAUSE)
        target = cast("SupportsPause", self.target)
        pause = Pause(target.pause())
        try:
            self.memory.expire()  # what was read of the running guest is not what stands still
            yield pause
        finally:
            if not self._closed:  # closing has let it go on already
                target.resume()
            pause.ended = time.monotonic()

    def search(
        self,
        pattern: str | bytes,
        kind: str = "text",
        *,
        ignore_case: bool = False,
        pid: int | None = None,
        context: int = 16,
        progress: Progress | None = None,
    ) -> Iterator[Match]:
        """Every place in guest memory where something is, lowest address first.

        Pages that the host does not hold are not touched. Without a process no kernel needs to
        be recognised. A process's page tables are read as the search goes on; where they make
        no sense it stops, and the guest's ``take_problems`` tells of it.

        :param pattern: and ``kind``, as of
            :func:`~virtintrospect.insight.patterns.compile_pattern`: ``text``, ``hex``,
            ``regex`` or ``yara``.
        :param ignore_case: of ASCII letters.
        :param pid: only in the memory of this process; else in all guest-physical memory.
        :param context: bytes before and behind a match that are given along with it.
        :param progress: called with the bytes that are done, and those there are.
        :raises UsageError: that is no such pattern.
        :raises NoSuchTargetError: there is no such process, or it is a kernel thread.
        """
        from virtintrospect.insight.patterns import compile_pattern
        from virtintrospect.insight.search import search
        from virtintrospect.insight.spans import physical_spans, virtual_spans

        def read(paddr: int, size: int) -> bytes:
            with self.lock:
                return self.memory.read(paddr, size)

        compiled = compile_pattern(pattern, kind, ignore_case=ignore_case)
        with self.lock:
            if pid is None:
                spans = physical_spans(self.memory)
            else:
                guest = self.guest
                space = guest.process_space(pid)
                end = 1 << (space.mode.virtual_bits - 1)
                spans = virtual_spans(
                    space,
                    end,
                    lambda what, address: guest.problems.append(Problem(what, address)),
                    self.lock,
                )
        virtual = pid is not None
        return search(read, spans, compiled, virtual=virtual, context=context, progress=progress)

    def close(self) -> None:
        """Release the guest's memory; closing twice is harmless."""
        with self.lock:
            self._guest = None
            if not self._closed:
                self._closed = True
                self.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_session(
    target: str,
    uri: str | None = None,
    store: Store | None = None,
    access: Access = READ_ONLY,
) -> Session:
    """Open what the user named (DESIGN: TARGET).

    :param target: domain name, id or UUID; a path with a ``/``; a ``file://`` URL; or what an
        installed driver claims by its beginning (``qmp:/run/qemu.sock``).
    :param uri: libvirt connection for domains.
    :param access: how it is opened, and what is allowed.
    :raises UsageError: there is no transport of that name, or it needs what is not allowed.
    :raises NoSuchTargetError: there is no such domain or file.
    :raises MemoryAccessError: its memory cannot be reached.
    """
    if access.nested:
        outer = open_session(target, uri, store, replace(access, nested=""))
        return _open_inner(outer, access.nested)
    claimed = driver_for_url(target)
    if claimed is not None:
        driver, scheme, rest = claimed
        driver.check(access)
        return Session(driver.open_url(scheme, rest, access), store=store)
    path = image_path(target)
    if path is not None:
        refuse_unknown(access, (ImageTarget.transport,), "a memory image")
        return Session(open_image_target(path, access), store=store)
    from virtintrospect.host import connect

    with connect(uri) as host:
        return open_domain(host.domain(target), store, access)


def _open_inner(outer: Session, wanted: str) -> Session:
    """A session on a guest inside a guest, which closes the one on the outer guest."""
    try:
        return outer.inner(wanted, take_over=True)
    except BaseException:
        outer.close()
        raise


def open_domain(domain: Domain, store: Store | None = None, access: Access = READ_ONLY) -> Session:
    """Open a session on a domain that is already known; see :func:`open_session`."""
    driver = driver_for(domain)
    driver.check(access)
    if not domain.active:
        from shlex import quote

        raise TargetGoneError(
            f"domain {domain.name!r} is {domain.state}: it has no memory to look at",
            hint=f"virsh -c {domain.uri} start {quote(domain.name)}",
        )
    return Session(driver.open(domain, access), domain, store)
