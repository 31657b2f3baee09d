"""Totals, runs and a picture of what the pages of a guest are used for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from virtintrospect.model.pages import PAGE_KINDS, PageOwners

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

#: Pixels of a line of the picture, and lines that it has at most.
WIDTH, _HEIGHT = 512, 1024


def totals(owners: PageOwners, resident: Array) -> list[dict[str, Any]]:
    """Pages and bytes of each kind that there is, and what the host holds of them.

    :param resident: mask of the pages that the host has memory for.
    """
    import numpy as np

    pages = np.bincount(owners.kind, minlength=len(PAGE_KINDS)).tolist()
    held = np.bincount(owners.kind[resident], minlength=len(PAGE_KINDS)).tolist()
    whole = sum(pages[1:]) or 1
    return [
        {
            "owner": name,
            "pages": count,
            "size": count * owners.page_size,
            "share": count / whole,
            "resident": there * owners.page_size,
        }
        for name, count, there in zip(PAGE_KINDS[1:], pages[1:], held[1:], strict=True)
        if count
    ]


def ranges(owners: PageOwners) -> Iterator[dict[str, Any]]:
    """Runs of pages that follow on each other and have the same kind and process."""
    import numpy as np

    kind, pid = owners.kind, owners.pid
    change = np.flatnonzero((np.diff(kind) != 0) | (np.diff(pid) != 0)) + 1
    starts = [0, *change.tolist()]
    ends = [*change.tolist(), len(kind)]
    for start, end in zip(starts, ends, strict=True):
        if start == end or not kind[start]:
            continue
        row = {
            "start": start * owners.page_size,
            "end": end * owners.page_size,
            "owner": PAGE_KINDS[kind[start]],
        }
        yield row | ({"pid": int(pid[start])} if pid[start] else {})


def picture(owners: PageOwners) -> tuple[Array, list[int], int]:
    """The guest's memory as lines of pixels, the lowest address first.

    Lines without any RAM are left out. A pixel is one page, or several of which it shows the
    kind that most of them are.

    :returns: kinds, as (lines, 512); the first page frame of each line; pages of a pixel.
    """
    import numpy as np

    used = int(np.count_nonzero(owners.kind))
    each = 1
    while used > each * WIDTH * _HEIGHT:
        each *= 2
    line = each * WIDTH
    lines = -(-len(owners.kind) // line)
    kind: Array = np.zeros(lines * line, dtype=np.uint8)
    kind[: len(owners.kind)] = owners.kind
    kind = kind.reshape(lines, line)
    kept = np.flatnonzero(kind.any(axis=1))
    kind = kind[kept].reshape(-1, each)
    if each > 1:
        counts = np.stack([(kind == k).sum(axis=1) for k in range(len(PAGE_KINDS))], axis=1)
        kind = counts.argmax(axis=1).astype(np.uint8).reshape(-1, 1)
    return kind.reshape(len(kept), WIDTH), (kept * line).tolist(), each
