"""Wait until a domain runs and its kernel can be recognised.

wait_for_domain.py NAME [SECONDS]
"""

import sys
import time

import virtintrospect

deadline = time.monotonic() + float(sys.argv[2] if len(sys.argv) > 2 else 300)
while True:
    try:
        with virtintrospect.open(sys.argv[1]) as guest:
            info = guest.info()
            print(f"{info.os} {info.release.decode()} on {info.hostname.decode()}")
        break
    except virtintrospect.VirtIntrospectError as error:  # not there, shut off, or still booting
        if time.monotonic() > deadline:
            sys.exit(str(error))
        time.sleep(0.5)
