"""Translation in bulk on a real guest of each paging mode that Debian has a kernel of."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from benchmarks.figures import Figure, show
from tests.guests.lab import matrix
from tests.guests.lab.guest import Guest
from tests.guests.test_architectures import FEWER_LEVELS, PAGE_MODES
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import open_session

_PAGES = 100_000
_TIMES = 7
_CONFIGS = (
    matrix.MATRIX[4],
    matrix.MATRIX[7],
    *matrix.I386,
    matrix.ARM64,
    *PAGE_MODES,
    *FEWER_LEVELS,
)


def main() -> None:
    """Boot each guest and walk the pages of its kernel's image, again and again."""
    show("translation in bulk, page walk, a page (CPU time)", _figures())


def _figures() -> Iterator[Figure]:
    for config in _CONFIGS:
        with Guest(config) as guest, open_session(guest.name) as session:
            kernel = session.guest
            assert isinstance(kernel, LinuxGuest)
            space, image = kernel.kernel.with_root(kernel.kernel.root), kernel.mapping.image
            pages = np.arange(image.start, image.end, kernel.page_size, dtype=np.uint64)
            wanted = np.resize(pages, _PAGES)
            took = []
            for _ in range(_TIMES):
                start = time.process_time()
                space.translate_many(wanted)
                took.append(time.process_time() - start)
            name = f"{space.mode.name}, {config.kernel}, {config.backing}"
            yield Figure(name, 1e9 * min(took) / _PAGES, "ns", "≤ 250")
