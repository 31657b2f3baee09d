"""Every step of a page-table walk.

walk_page_table.py TARGET ADDRESS [PID]
"""

import sys

import virtintrospect

with virtintrospect.open(sys.argv[1]) as guest:
    space = guest.process_space(int(sys.argv[3])) if len(sys.argv) > 3 else guest.kernel
    walk = space.walk(int(sys.argv[2], 0))
    for step in walk.steps:
        print(f"{step.level:>4} {step.entry:#018x}")
    print("not mapped" if walk.paddr is None else f"     {walk.paddr:#x}")
