"""Every page that a process maps: virtual and physical address, size, rights.

process_pages.py TARGET PID
"""

import sys

import virtintrospect
from virtintrospect.arch.leaves import EXECUTABLE, WRITABLE

with virtintrospect.open(sys.argv[1]) as guest:
    space = guest.process_space(int(sys.argv[2]))
    pages = space.pages(end=1 << (space.mode.virtual_bits - 1))
for vaddr, paddr, shift, rights in zip(
    pages.vaddr, pages.paddr, pages.shift, pages.rights, strict=True
):
    letters = ("w" if rights & WRITABLE else "-") + ("x" if rights & EXECUTABLE else "-")
    print(f"{vaddr:#018x}  {paddr:#014x}  {1 << shift >> 10:>7} KiB  r{letters}")
