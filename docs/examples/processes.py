"""Processes of a guest with what they keep in memory.

processes.py TARGET
"""

import sys

import virtintrospect

with virtintrospect.open(sys.argv[1]) as guest:
    for process in guest.processes():
        if process.kernel_thread:
            continue
        size = "?" if process.resident_size is None else process.resident_size >> 10
        print(f"{process.pid:>7} {size:>9} KiB  {process.name.decode(errors='backslashreplace')}")
