"""Kernel modules of a guest as lsmod prints them.

modules.py TARGET
"""

import sys

import virtintrospect

with virtintrospect.open(sys.argv[1]) as guest:
    print("Module                  Size  Used by")
    for module in guest.modules():
        users = b",".join(module.used_by).decode(errors="backslashreplace")
        name = module.name.decode(errors="backslashreplace")
        print(f"{name:<19} {module.size:>8}  {module.refcount} {users}".rstrip())
