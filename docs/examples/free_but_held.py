"""How much of the host's memory is held by pages that the guest has free.

free_but_held.py TARGET
"""

import sys

import virtintrospect

with virtintrospect.open(sys.argv[1]) as guest:
    owners = guest.page_owners()
    held = owners.within(guest.memory.resident())
free = owners.of("free", "free_percpu")
print(f"free in the guest: {free.sum() * owners.page_size >> 20} MiB")
print(f"of that held by the host: {(free & held).sum() * owners.page_size >> 20} MiB")
