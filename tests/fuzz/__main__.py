"""The long run: ``make fuzz``. Boots a guest, takes its RAM, bends it until time is up.

FUZZ_SECONDS (600), FUZZ_SEED (random), FUZZ_ONLY=SEED repeats a failure, FUZZ_KERNEL is
the guest's (6.1), FUZZ_IMAGE=FILE takes RAM from a file instead of booting one.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.exercise import Fuzzer, HostileGuestWonError
from tests.fuzz.image import CONFIG, copy_ram
from tests.fuzz.mutate import seeds


def main() -> int:
    """Run; the exit code says whether the guest won."""
    with tempfile.TemporaryDirectory() as folder:
        given = os.environ.get("FUZZ_IMAGE")
        image = Path(given) if given else Path(folder) / "ram"
        if not given or not image.exists():
            from tests.guests.lab.guest import Guest

            with Guest(CONFIG) as guest:
                copy_ram(guest, image)
        fuzzer = Fuzzer(image, Path(folder) / "cache")
        return _run(fuzzer)


def _run(fuzzer: Fuzzer) -> int:
    only = os.environ.get("FUZZ_ONLY")
    first = int(only or os.environ.get("FUZZ_SEED") or time.time_ns() // 1_000_000_000 * 1000)
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "600"))
    count = failures = 0
    for seed in seeds(first):
        count += 1
        try:
            fuzzer.run(seed)
        except HostileGuestWonError as error:
            failures += 1
            print(f"{error}\nrepeat it: make fuzz FUZZ_ONLY={seed}\n", file=sys.stderr, flush=True)
        if only or time.monotonic() > end:
            break
    print(f"{count} mutations from seed {first}, {failures} failures; slowest, by step:")
    for name, (seconds, seed) in fuzzer.slowest.items():
        print(f"  {name:14} {seconds:6.2f} s (seed {seed}), refused {fuzzer.refused.get(name, 0)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
