"""A number, a string or bytes: at a physical address, one of the kernel, or one of a process.

read_memory.py TARGET physical|kernel|PID ADDRESS|SYMBOL 1|2|4|8|string|bytes
"""

import sys

import virtintrospect

target, where, what, kind = sys.argv[1:5]
with virtintrospect.open(target) as guest:
    if where == "physical":
        space = guest.physical
    else:
        space = guest.kernel if where == "kernel" else guest.process_space(int(where))
    address = int(what, 0) if what[0].isdigit() else guest.symbols.address(what)
    if kind == "string":
        print(space.string(address).decode(errors="backslashreplace"))
    elif kind == "bytes":
        print(space.read(address, 64).hex(" "))
    else:
        print(f"{space.integer(address, int(kind)):#x}")
