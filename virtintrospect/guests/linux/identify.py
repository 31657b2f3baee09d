"""From a mapped kernel image to a guest: its build, its symbols, its types, and the proof.

What depends only on the kernel's build comes from the disk cache when that was made from the
very bytes that this guest has in memory; otherwise it is parsed out of the image.
"""

from __future__ import annotations

import logging
import mmap
import re
import time
from collections.abc import Iterator
from contextlib import suppress

from virtintrospect.driver import Target, registers_of
from virtintrospect.errors import (
    CorruptDataError,
    FaultError,
    GuestNotRecognisedError,
    MissingSymbolsError,
    MissingTypesError,
    NotFoundError,
    VirtIntrospectError,
)
from virtintrospect.guests.linux import locate
from virtintrospect.guests.linux.datasymbols import Searched, with_data
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.machine import KernelMapping
from virtintrospect.memory import PhysicalMemory
from virtintrospect.symbols.btf import MAX_SIZE, Btf
from virtintrospect.symbols.profile import Profile
from virtintrospect.symbols.store import Store
from virtintrospect.symbols.table import Symbols

_log = logging.getLogger(__name__)

#: An ELF note of type NT_GNU_BUILD_ID with 20 bytes (SHA-1), the name GNU, as ld writes it.
_NOTE = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"
_BUILD_ID_SIZE = 20
#: How ``linux_banner`` begins.
_BANNER = b"Linux version "
#: The release in it; the format string of /proc/version, which begins like it, has a ``%s``.
_RELEASE = re.compile(_BANNER + rb"([0-9][\x21-\x7e]{0,63}) ")
#: The kernel's own notes are a few hundred bytes.
_LARGEST_NOTES = 64 << 10
_CHUNK = 4 << 20
#: Seconds after which no further candidate is tried.
_PATIENCE = 60.0


def identify(
    target: Target, store: Store, previous: object = None, *, thorough: bool = True
) -> LinuxGuest:
    """Recognise the Linux kernel that runs in a target.

    :param previous: the guest that ran there before. Its kernel still lies in RAM after a
        reboot; only the machine's certain way leads to the new one for sure.
    :param thorough: see :func:`~virtintrospect.guests.linux.locate.candidates`.
    :raises GuestNotRecognisedError: there is none; says what was tried and where it stopped.
    :raises MissingTypesError: there is one, without type information.
    :raises MissingSymbolsError: there is one, without symbols of its data.
    """
    problems: list[VirtIntrospectError] = []
    deadline = time.monotonic() + _PATIENCE
    before = previous.mapping if isinstance(previous, LinuxGuest) else None
    again = before is not None and before.found_by == before.machine.certain
    for mapping in locate.candidates(target, thorough=thorough and not again):
        if again and before is not None and mapping.found_by != before.found_by:
            continue
        if problems and time.monotonic() > deadline:
            break
        _log.info(
            "kernel image at %#x (physical %#x, %d MiB, %s), by %s",
            mapping.image.start, mapping.image.paddr,
            (mapping.image.end - mapping.image.start) >> 20, mapping.mode.name, mapping.found_by,
        )  # fmt: skip
        try:
            return _Identification(target, store, mapping).guest()
        except MissingTypesError:
            raise
        except (GuestNotRecognisedError, NotFoundError, CorruptDataError, FaultError) as error:
            _log.info("not it: %s", error)
            problems.append(error)
    for problem in problems:
        if isinstance(problem, MissingSymbolsError):
            raise problem
    if problems:
        raise GuestNotRecognisedError(
            f"a kernel image was found, but not understood: {problems[0]}",
            hint="the guest may be booting: try again; if it lasts, report it with --debug",
        ) from problems[0]
    if again:
        raise GuestNotRecognisedError(
            "the guest reboots, and its new kernel is not there yet", hint="try again in a moment"
        )
    raise GuestNotRecognisedError(
        f"no Linux kernel in the guest's memory (tried {locate.tried(target, thorough=thorough)})",
        hint="it may still be in its firmware or boot loader, or run something else than Linux",
    )


class _Identification:
    """One attempt, on one mapped image."""

    def __init__(self, target: Target, store: Store, mapping: KernelMapping) -> None:
        self.target = target
        self.memory: PhysicalMemory = target.memory
        self.store = store
        self.mapping = mapping
        self.size = mapping.image.end - mapping.image.start

    def guest(self) -> LinuxGuest:
        profile, build_id = self._profile()
        base = self.mapping.image.start
        symbols = profile.symbols.slid(base)
        types = profile.types
        if types is None:
            banner = self._banner(symbols)
            types = self.store.imports.types(build_id, banner)
            if types is None:
                raise _no_types(banner, build_id)
        guest = LinuxGuest(
            self.memory, self.mapping, symbols, types, build_id, live=self.target.live
        )
        if not _has_data(symbols):
            guest.symbols = symbols.extended(Searched(guest))
            guest.functions_only = True
        # Registers of CPUs that run on are not those of the stacks that are read a moment later.
        if not self.target.live:
            guest.registers = registers_of(self.target)
        self._verify(guest)
        return guest

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the image, copied: the guest may change them while we look."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FaultError(self.mapping.image.start + offset, size, kind="image")
        return self.memory.read(self.mapping.image.paddr + offset, size)

    def _profile(self) -> tuple[Profile, bytes]:
        """The profile of this kernel, cached or made now."""
        for build_id in self._known_build_ids():
            profile = self.store.find(build_id, self.read)
            if profile is not None:
                # Better than functions alone is what somebody brought meanwhile.
                brought = None if _has_data(profile.symbols) else self._brought()
                return brought or (profile, build_id)
        try:
            return self._parse()
        except (GuestNotRecognisedError, NotFoundError, CorruptDataError):
            found = self._brought()
            if found is None:
                raise
            return found

    def _known_build_ids(self) -> Iterator[bytes]:
        """Build ids of cached kernels that this image has in the same place as they do."""
        for offset, build_id in self.store.notes():
            with suppress(FaultError):
                if self.read(offset, len(_NOTE) + _BUILD_ID_SIZE) == _NOTE + build_id:
                    yield build_id

    def _parse(self) -> tuple[Profile, bytes]:
        """Symbols and types out of the image itself."""
        from virtintrospect.symbols import kallsyms

        image = self._private_copy()
        base = self.mapping.image.start
        try:
            tables = kallsyms.find_tables(image, base)
        except GuestNotRecognisedError as problem:
            raise self._no_symbols(image, "no symbols (kallsyms)") or problem from problem
        symbols = Symbols(kallsyms.decode(image, tables), base)
        sources = list(tables.sources(image))
        if "init_task" not in symbols:  # no CONFIG_KALLSYMS_ALL
            brought = self._brought()
            if brought is not None:
                return brought
            symbols, more = with_data(image, base, symbols)
            sources = sources and sources + more
        if "linux_banner" not in symbols or "init_task" not in symbols:
            missing = self._no_symbols(image, "symbols of functions only")
            raise missing or GuestNotRecognisedError(
                "kallsyms has neither linux_banner nor init_task"
            )
        offset, build_id = self._own_note(symbols)
        types = None
        extent = self._btf(symbols)
        if extent is not None:
            blob = image[extent[0] : extent[0] + extent[1]]
            types = Btf.parse(blob)
            sources.append((extent[0], blob))
        profile = self.store.save(build_id, sources, symbols, types, {"note": offset})
        return profile, build_id

    def _brought(self) -> tuple[Profile, bytes] | None:
        """Symbols that a person brought, of a kernel that carries none; types where it has them."""
        base = self.mapping.image.start
        for about, linked in self.store.imports.symbols(self.read):
            symbols = linked.slid(base)
            offset, build_id = self._own_note(symbols)
            banner_at = symbols.address("linux_banner") - base
            places = [(offset, len(_NOTE) + _BUILD_ID_SIZE), (banner_at, len(_BANNER))]
            sources: list[tuple[int, bytes]] = [(at, self.read(at, size)) for at, size in places]
            types, extent = None, self._btf(symbols)
            if extent is not None:
                blob = self.read(*extent)
                types = Btf.parse(blob)
                sources.append((extent[0], blob))
            _log.info("symbols from %s fit", about.source)
            metadata = {"note": offset, "brought": [about.kernel, about.checksum]}
            return self.store.save(build_id, sources, symbols, types, metadata), build_id
        return None

    def _private_copy(self) -> memoryview:
        """A copy of the image that the guest cannot change while it is parsed.

        Only read-only data is copied, for all tables are there; the rest stays untouched zero
        pages, so that code, data and bss cost no memory.
        """
        copy = memoryview(mmap.mmap(-1, self.size))
        for start, end, _ in self.mapping.machine.read_only_data(self.memory, self.mapping):
            offset = start - self.mapping.image.start
            for chunk in range(offset, offset + end - start, _CHUNK):
                size = min(_CHUNK, offset + end - start - chunk)
                copy[chunk : chunk + size] = self.read(chunk, size)
        return copy

    def _no_symbols(self, image: memoryview, what: str) -> MissingSymbolsError | None:
        """What to say of a kernel whose symbols are missing; ``None`` where there is no kernel."""
        start = self.mapping.image.start
        for first, end, _ in self.mapping.machine.read_only_data(self.memory, self.mapping):
            found = _RELEASE.search(image[first - start : end - start])
            if found is not None:
                return MissingSymbolsError(
                    f"the guest's kernel carries {what}: {found[1]!r}",
                    hint="bring its vmlinux from the distribution's debug package, or its "
                    "System.map: virt-introspect symbols import FILE",
                )
        return None

    def _own_note(self, symbols: Symbols) -> tuple[int, bytes]:
        """The kernel's own build id lies between __start_notes and __stop_notes."""
        base = self.mapping.image.start
        first = symbols.address("__start_notes") - base
        last = symbols.address("__stop_notes") - base
        notes = self.read(first, min(last - first, _LARGEST_NOTES))
        position = notes.find(_NOTE)
        build_id = notes[position + len(_NOTE) :][:_BUILD_ID_SIZE]
        if position < 0 or len(build_id) < _BUILD_ID_SIZE:
            raise GuestNotRecognisedError("the kernel image has no build id")
        return first + position, build_id

    def _btf(self, symbols: Symbols) -> tuple[int, int] | None:
        start, stop = symbols.get("__start_BTF"), symbols.get("__stop_BTF")
        if start is None or stop is None or not 0 < stop - start <= MAX_SIZE:
            return None
        return start - self.mapping.image.start, stop - start

    def _banner(self, symbols: Symbols) -> bytes:
        offset = symbols.address("linux_banner") - self.mapping.image.start
        return bytes(self.read(offset, 256)).split(b"\0", 1)[0].rstrip(b"\n")

    def _verify(self, guest: LinuxGuest) -> None:
        """The proof that all of it fits: two places that only a running Linux has like this."""
        if not guest.banner.startswith(_BANNER):
            raise GuestNotRecognisedError("linux_banner holds no kernel version")
        comm = guest.read_global("init_task", ["comm"], text=("comm",))["comm"]
        if not comm.startswith(b"swapper"):
            raise GuestNotRecognisedError("init_task is not the idle task: still booting")


def _has_data(symbols: Symbols) -> bool:
    """Whether symbols are more than those of functions: every kernel has one of these."""
    return "prb" in symbols or "log_buf" in symbols


def _no_types(banner: bytes, build_id: bytes) -> MissingTypesError:
    return MissingTypesError(
        f"the guest's kernel carries no type information (BTF): {banner[:80]!r}",
        hint="kernels built with CONFIG_DEBUG_INFO_BTF have it (Debian 11, RHEL 8, Ubuntu 20.10 "
        f"and later do); for this one, bring the vmlinux of build id {build_id.hex()}: "
        "virt-introspect symbols import FILE",
    )
