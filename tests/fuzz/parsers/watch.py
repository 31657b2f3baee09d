"""What a parser may do with bad input, and who notices when it does more."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from tests.fuzz.parsers.target import Target
from virtintrospect.cli.escape import printable
from virtintrospect.errors import VirtIntrospectError

#: Seconds of CPU time for one input; inputs have some 100 KiB at most.
SECONDS = 5.0
#: Bytes by which the process may grow meanwhile.
GROWTH = 256 << 20


class BadInputWonError(AssertionError):
    """A parser broke a rule."""


def watched(target: Target, data: bytes) -> None:
    """Run a target under watch.

    :raises BadInputWonError: an error that is not virtintrospect's own, too long, or too much.
    """
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM anew
    start = time.process_time()
    try:
        target.run(data)
    except VirtIntrospectError as error:
        text = printable(str(error))
        if not text.isprintable() or len(text) > 2000:
            raise BadInputWonError(
                f"{target.name}: a message of its own making: {text!r}"
            ) from error
    except Exception as error:
        raise BadInputWonError(f"{target.name}: {traceback.format_exc()}") from error
    took = time.process_time() - start
    grown = (_kilobytes("VmHWM") - before) << 10
    if took > SECONDS:
        raise BadInputWonError(f"{target.name} took {took:.1f} s")
    if grown > GROWTH:
        raise BadInputWonError(f"{target.name} grew by {grown >> 20} MiB")


def _kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise AssertionError(field)
