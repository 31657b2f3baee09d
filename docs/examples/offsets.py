"""Offsets of members, and where the kernel lies: what other tools want to be told.

offsets.py TARGET [TYPE.MEMBER…]
"""

import sys

import virtintrospect

USUAL = ["task_struct.tasks", "task_struct.mm", "task_struct.tgid", "task_struct.comm"]

with virtintrospect.open(sys.argv[1]) as guest:
    info = guest.info()
    print(f"kernel_base = {info.kernel_base:#x}")
    print(f"kaslr_slide = {info.kaslr_slide:#x}")
    print(f"page_table = {guest.kernel.root:#x}")
    for name in sys.argv[2:] or [*USUAL, "mm_struct.pgd"]:
        kind, _, member = name.partition(".")
        print(f"{name} = {guest.types.offsetof(kind, member):#x}")
