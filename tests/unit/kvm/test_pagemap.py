"""Residency by the entries of a pagemap, here a file: no page of ours can be swapped out."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import cast

from virtintrospect_kvm.pagemap import Pagemap
from virtintrospect_kvm.process import QemuProcess

from virtintrospect.memory import Region

PAGE = 4096
PRESENT, SWAPPED = 1 << 63, 1 << 62


def test_swapped_pages_are_for_those_who_ask(tmp_path: Path) -> None:
    """A sweep leaves them out; a dump must have them."""
    entries = [0, PRESENT | 5, SWAPPED | 7, PRESENT, 0, SWAPPED, 0, 0]
    path = tmp_path / "pagemap"
    path.write_bytes(struct.pack(f"<{len(entries)}Q", *entries))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pagemap = Pagemap(cast("QemuProcess", None), descriptor, 0, len(entries) * PAGE)
        swept = list(pagemap.extents(0, len(entries) * PAGE))
        whole = list(pagemap.extents(0, len(entries) * PAGE, swapped=True))
    finally:
        os.close(descriptor)
    assert swept == [Region(PAGE, 2 * PAGE), Region(3 * PAGE, 4 * PAGE)]
    assert whole == [Region(PAGE, 4 * PAGE), Region(5 * PAGE, 6 * PAGE)]
    assert pagemap.run(2, 8) == (True, 4)
