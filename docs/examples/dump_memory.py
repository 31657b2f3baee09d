"""Guest-physical memory in a sparse file: what holds data, each byte at its own address.

dump_memory.py TARGET FILE
"""

import sys
from pathlib import Path

import virtintrospect

STEP = 1 << 20

with virtintrospect.open(sys.argv[1]) as guest, Path(sys.argv[2]).open("xb") as file:
    for start, end in guest.memory.resident():
        for paddr in range(start, end, STEP):
            file.seek(paddr)
            file.write(guest.memory.read(paddr, min(STEP, end - paddr)))
    file.truncate(guest.memory.end)
