"""Bytes at a kernel address, in hexadecimal.

map_address.py TARGET ADDRESS [BYTES]
"""

import sys

import virtintrospect

address = int(sys.argv[2], 0)
size = int(sys.argv[3]) if len(sys.argv) > 3 else 64
with virtintrospect.open(sys.argv[1]) as guest:
    data = guest.kernel.read(address, size)
for offset in range(0, size, 16):
    print(f"{address + offset:#x}  {data[offset : offset + 16].hex(' ')}")
