"""Where a text is in guest memory, as UTF-8 or UTF-16, and which process maps the page.

find_text.py TARGET TEXT
"""

import sys

import virtintrospect

with virtintrospect.open(sys.argv[1]) as guest:
    owners = guest.page_owners()
    for match in guest.search(sys.argv[2]):
        page = match.paddr // owners.page_size
        print(f"{match.paddr:#014x}  {match.name:<6}  pid {owners.pid[page]}")
