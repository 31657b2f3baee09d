"""The last lines of a guest's log.

dmesg_tail.py TARGET [LINES]
"""

import sys

import virtintrospect

lines = int(sys.argv[2]) if len(sys.argv) > 2 else 10
with virtintrospect.open(sys.argv[1]) as guest:
    for record in guest.dmesg()[-lines:]:
        text = record.text.decode(errors="backslashreplace")
        print(f"[{record.time:12.6f}] {record.level}: {text}")
