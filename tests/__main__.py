"""``python -m tests [ARGUMENTS]``: all tests, in two processes side by side.

With arguments it is pytest with these, in one process.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from tests.conftest import LANES

_PYTEST = (sys.executable, "-m", "pytest", "--durations=15")


def main(arguments: list[str]) -> int:
    """Run them; the exit code is that of the first lane that failed."""
    if arguments:
        return subprocess.call([*_PYTEST, *arguments])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        outputs = [stack.enter_context(Path(folder, lane).open("wb")) for lane in LANES]
        processes = [
            subprocess.Popen([*_PYTEST, "--lane", lane], stdout=output, stderr=subprocess.STDOUT)
            for lane, output in zip(LANES, outputs, strict=True)
        ]
        try:
            for lane, process, output in zip(LANES, processes, outputs, strict=True):
                print(f"== tests, lane {lane} ==", flush=True)
                _show(process, output)
        finally:
            for process in processes:  # still there only where this one is interrupted
                process.send_signal(signal.SIGINT)
                process.wait()
        return next((p.returncode for p in processes if p.returncode), 0)


def _show(process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    """What a lane says, as it comes."""
    with Path(output.name).open("rb") as reader:
        while True:
            ended = process.poll() is not None
            if text := reader.read():
                sys.stdout.buffer.write(text)
                sys.stdout.buffer.flush()
            elif ended:
                return
            else:
                time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
