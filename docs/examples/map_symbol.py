"""Where a kernel symbol is, virtual and physical, and its first bytes.

map_symbol.py TARGET NAME
"""

import sys

import virtintrospect

with virtintrospect.open(sys.argv[1]) as guest:
    address = guest.symbols.address(sys.argv[2])
    print(f"{sys.argv[2]} {address:#x} -> {guest.kernel.translate(address):#x}")
    print(guest.kernel.read(address, 32).hex(" "))
