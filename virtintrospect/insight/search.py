"""Search guest memory, physical or of one process, without touching absent pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from virtintrospect.errors import FaultError
from virtintrospect.insight.patterns import LONGEST, Pattern
from virtintrospect.insight.spans import PIECE, Span, Spans
from virtintrospect.model import Match

#: Bytes of a match that are kept.
_KEPT = 256

#: Called with bytes done and bytes in all, after each piece.
Progress = Callable[[int, int], None]


def search(
    read: Callable[[int, int], bytes],
    spans: Spans,
    pattern: Pattern,
    *,
    virtual: bool,
    context: int = 16,
    progress: Progress | None = None,
) -> Iterator[Match]:
    """Every place in some spans where a pattern is, in rising order.

    A match may cross the borders of pages, and of ranges that follow on each other; it is
    found whole up to :data:`~virtintrospect.insight.patterns.LONGEST` bytes.

    :param read: gives ``size`` bytes of guest-physical memory at an address.
    :param virtual: the addresses of the spans are virtual ones.
    :param context: bytes before and behind a match that are given along with it.
    """
    done, total = 0, 0 if progress is None else spans.size()
    behind = 0  # end of the last match: the next one begins there at the earliest
    for span in spans.parts(context):
        for at in range(span.first, span.last, PIECE):
            size = min(PIECE, span.last - at)
            first = max(0, at - context)
            data = _bytes(read, span, first, min(span.size, at + size + LONGEST) - first)
            skip = max(at, behind - span.start) - first
            inner = data[skip:] if skip else data
            for start, end, name in pattern.find(inner):
                if start + skip + first >= at + size:
                    break
                behind = max(behind, span.start + first + skip + end)
                yield _match(span, first, data, start + skip, end + skip, name, context, virtual)
            done += size
            if progress is not None:
                progress(done, max(done, total))


def _match(
    span: Span,
    first: int,
    data: bytes,
    start: int,
    end: int,
    name: str,
    context: int,
    virtual: bool,
) -> Match:
    address = span.start + first + start
    index = int(span.vaddr.searchsorted(address, side="right")) - 1
    return Match(
        paddr=address - int(span.vaddr[index]) + int(span.paddr[index]),
        vaddr=address if virtual else None,
        size=end - start,
        name=name,
        data=data[start : min(end, start + _KEPT)],
        before=data[max(0, start - context) : start],
        after=data[end : end + context],
    )


def _bytes(read: Callable[[int, int], bytes], span: Span, offset: int, size: int) -> bytes:
    """Bytes of a span; zeros for what has just gone away."""
    address, end = span.start + offset, span.start + offset + size
    index = int(span.vaddr.searchsorted(address, side="right")) - 1
    last = int(span.vaddr.searchsorted(end, side="left"))
    begins, places = span.vaddr[index:last].tolist(), span.paddr[index:last].tolist()
    parts = []
    for begin, place, ends in zip(begins, places, [*begins[1:], end], strict=True):
        step = min(end, ends) - address
        try:
            parts.append(read(address - begin + place, step))
        except FaultError:
            parts.append(bytes(step))
        address += step
    return parts[0] if len(parts) == 1 else b"".join(parts)
