"""Copy a target's memory into a file: sparse, resumable, hashed, never half done.

One pass in the order of the file. A piece is copied out of the guest first, and what is written
and hashed is that copy: the guest may change its memory meanwhile. Pages that the host has not
got are not looked at at all; pages of zeros are not written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

from virtintrospect.acquire.buffers import Buffers
from virtintrospect.acquire.digest import Digest
from virtintrospect.acquire.layout import Layout, lay_out, outline
from virtintrospect.acquire.part import PartFile, runs_before
from virtintrospect.acquire.source import Origin
from virtintrospect.driver import Capability, SupportsPause
from virtintrospect.errors import FaultError, OutputError
from virtintrospect.memory.base import PAGE_SIZE, PhysicalMemory, Region, merge
from virtintrospect.memory.file import Part
from virtintrospect.model.acquisition import Acquisition

#: Bytes that are copied at once: within the caches of a CPU, and few calls.
_PIECE = 1 << 20
#: Seconds between two notes of how far it is.
_NOTED_EVERY = 5.0

#: Called with bytes of guest memory done and altogether.
Progress = Callable[[int, int], None]


class _Piece(NamedTuple):
    paddr: int
    size: int
    #: In the file.
    offset: int


def dump(
    origin: Origin,
    path: Path,
    format_: str,
    *,
    pause: bool = False,
    resume: bool = False,
    force: bool = False,
    digest: bool = True,
    progress: Progress | None = None,
) -> Acquisition:
    """Write the memory of a target to a file.

    :param format_: one of :data:`~virtintrospect.acquire.layout.FORMATS`.
    :param pause: stop the guest meanwhile; it goes on whatever happens.
    :param resume: go on with a dump that was interrupted.
    :param force: replace a file of that name, and an unfinished dump to it.
    :param digest: compute the SHA-256 of the file.
    :param progress: called now and then.
    :raises UsageError: the file is there already, or the target cannot be paused.
    :raises OutputError: the file cannot be written. What was copied stays in ``FILE.part``.
    :raises MemoryAccessError: the guest's memory is gone. The same holds.
    """
    if pause:
        origin.target.require(Capability.PAUSE)
    memory = origin.target.memory
    with _Stop(cast("SupportsPause", origin.target) if pause else None) as stop:
        notes = origin.all_notes()  # with registers of the moment that the memory is of
        runs = runs_before(path) if resume else outline(memory)
        layout = lay_out(format_, list(merge(memory.regions)), runs, notes, origin.machine)
        with PartFile(path, layout, runs, origin.identity, resume=resume, force=force) as part:
            run = _Run(memory, layout, part, digest=digest, progress=progress)
            # A hash of many zeros takes longer than the copy, which then is to be ahead of it,
            # faster than the disk.
            holes = layout.size - sum(region.size for region in runs)
            run.cached = digest and holes > layout.size // 8
            try:
                try:
                    run.copy()
                finally:
                    part.tally.pause_ms += stop.end()
                part.flush()  # while the hash is still at it
                sha256 = run.digest.finish(layout.size) if run.digest else None
                part.finish()
            except BaseException:
                run.give_up()
                raise
    return run.record(path, sha256)


class _Stop:
    """A guest that stands still from the block's begin to :meth:`end`; ``None``: it runs on."""

    def __init__(self, target: SupportsPause | None) -> None:
        self._target = target
        self._began = 0.0

    def __enter__(self) -> Self:
        if self._target is not None:
            self._began = self._target.pause()
        return self

    def end(self) -> float:
        """Let it go on; milliseconds that it stood still. Doing so twice is harmless."""
        target, self._target = self._target, None
        if target is None:
            return 0.0
        target.resume()
        return (time.monotonic() - self._began) * 1e3

    def __exit__(self, *exc_info: object) -> None:
        self.end()


class _Run:
    """One run of a dump; several make it where it was interrupted."""

    def __init__(
        self,
        memory: PhysicalMemory,
        layout: Layout,
        part: PartFile,
        *,
        digest: bool,
        progress: Progress | None,
    ) -> None:
        self._memory = memory
        self._layout = layout
        self._part = part
        self._progress = progress
        self._total = sum(p.length for p in layout.parts)
        self._began = self._noted = time.monotonic()
        #: What is kept of the runs before, too.
        self.tally = part.tally
        self._before = self.tally.seconds
        self.tally.runs += 1
        self.digest = Digest(self.tally.done, part.read) if digest else None
        #: All is written through the page cache.
        self.cached = False
        self._buffers = Buffers(_PIECE)

    def copy(self) -> None:
        """Copy what is left to be copied."""
        import numpy as np

        spare = self._buffers.another()
        for piece, head in self._pieces(self.tally.done):
            if head is not None:
                self._part.write(piece.offset, head)
                if self.digest:
                    self.digest.add(piece.offset, head)
            else:
                buffer = self._buffers.take()
                data = (spare if buffer is None else buffer)[: piece.size]
                self._read(piece, data)
                self._copy_pages(np, piece.offset, data, buffer)
            self.tally.done = piece.offset + piece.size
            self._between(piece)

    def _copy_pages(
        self, np: Any, offset: int, data: memoryview, buffer: memoryview | None
    ) -> None:
        """Write and hash a piece.

        :param buffer: what ``data`` is the beginning of; ``None`` where the hash is too far
            behind to have it: then it will read the file, and the page cache is of use.
        """
        if self.digest and buffer is not None:
            self.digest.add(offset, data, partial(self._buffers.give, buffer))
        cached = self.cached or buffer is None
        self.tally.resident += self._write_pages(np, offset, data, cached=cached)
        if self.digest and buffer is None:
            self.digest.add_written(offset, len(data))
        elif buffer is not None and not self.digest:
            self._buffers.give(buffer)

    def _pieces(self, done: int) -> Iterator[tuple[_Piece, bytes | None]]:
        """What the file consists of from offset ``done`` on, in its order."""
        heads = {offset: data for offset, data in self._layout.heads if offset >= done}
        waiting = sorted(heads)
        runs = _cut(self._memory.populated(), self._layout.parts, done)
        for piece in runs:
            while waiting and waiting[0] < piece.offset:
                offset = waiting.pop(0)
                yield _Piece(0, len(heads[offset]), offset), heads[offset]
            yield piece, None
        for offset in waiting:
            yield _Piece(0, len(heads[offset]), offset), heads[offset]

    def _read(self, piece: _Piece, out: memoryview) -> None:
        try:
            self._memory.read_into(piece.paddr, out)
        except FaultError:  # ballooned away, or unplugged, since it was listed
            faults: list[int] = []
            pages = range(piece.paddr, piece.paddr + piece.size, PAGE_SIZE)
            if piece.size % PAGE_SIZE:
                self.tally.unreadable += piece.size
                out[:] = bytes(piece.size)
                return
            out[:] = self._memory.gather(pages, PAGE_SIZE, faults)
            self.tally.unreadable += len(faults) * PAGE_SIZE

    def _write_pages(self, np: Any, offset: int, data: memoryview, *, cached: bool) -> int:
        """Write the runs of pages that are not all zeros; bytes of them."""
        whole = len(data) // PAGE_SIZE
        words = np.frombuffer(data, np.uint64, whole * (PAGE_SIZE // 8))
        used = np.bitwise_or.reduce(words.reshape(whole, PAGE_SIZE // 8), axis=1) != 0
        written = 0
        if used.all():
            edges = [0, whole] if whole else []
        else:
            padded = np.concatenate(([False], used, [False]))
            edges = np.flatnonzero(padded[1:] != padded[:-1]).tolist()
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            self._part.write(
                offset + first * PAGE_SIZE, data[first * PAGE_SIZE : end * PAGE_SIZE], cached=cached
            )
            written += (end - first) * PAGE_SIZE
        tail = data[whole * PAGE_SIZE :]
        if any(tail):
            self._part.write(offset + whole * PAGE_SIZE, tail)
            written += len(tail)
        return written

    def _between(self, piece: _Piece) -> None:
        now = time.monotonic()
        if now - self._noted > _NOTED_EVERY:
            self._note()
            self._noted = time.monotonic()
        if self._progress:
            before = sum(p.length for p in self._layout.parts if p.end <= piece.paddr)
            inside = sum(
                piece.paddr + piece.size - p.start
                for p in self._layout.parts
                if p.start <= piece.paddr < p.end
            )
            self._progress(before + inside, self._total)

    def _note(self) -> None:
        self.tally.seconds = self._before + time.monotonic() - self._began
        self._part.save()

    def give_up(self) -> None:
        """Keep what there is, so that it can go on; nothing where there is nothing."""
        if self.digest:
            self.digest.abandon()
        if not self.tally.done:
            self._part.discard()
            return
        if self._part.part.exists():
            with suppress(OutputError):  # no space for it either: the note before this one holds
                self._note()

    def record(self, path: Path, sha256: str | None) -> Acquisition:
        """What it was, now that it is done."""
        return Acquisition(
            file=str(path),
            format=self._layout.format,
            size=self._layout.size,
            resident=self.tally.resident,
            holes=sum(region.size for region in self._layout.regions) - self.tally.resident,
            unreadable=self.tally.unreadable,
            sha256=sha256,
            seconds=round(self._before + time.monotonic() - self._began, 3),
            pause_ms=round(self.tally.pause_ms, 1),
            runs=self.tally.runs,
        )


def _cut(runs: Iterator[Region], parts: tuple[Part, ...], done: int) -> Iterator[_Piece]:
    """Ranges that hold data as pieces of the file, from its offset ``done`` on."""
    index = 0
    for start, end in runs:
        while start < end and index < len(parts):
            part = parts[index]
            if part.end <= start:
                index += 1
                continue
            at = max(start, part.start, part.start + done - part.offset)
            stop = min(end, part.end)
            # Pieces end where a whole number of them would from the beginning of the part.
            while at < stop:
                size = min(_PIECE - (at - part.start) % _PIECE, stop - at)
                yield _Piece(at, size, part.offset + at - part.start)
                at += size
            start = stop
