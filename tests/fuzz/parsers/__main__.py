"""The long run over all parsers: part of ``make fuzz``.

FUZZ_SECONDS (600) are shared by the targets; FUZZ_TARGET=NAME runs one of them (a part of the name
will do), FUZZ_INPUT=FILE repeats one input on it. With atheris the search is led by coverage;
without, inputs are bent at random (FUZZ_SEED).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.parsers.all import TARGETS
from tests.fuzz.parsers.bend import Edit, bent
from tests.fuzz.parsers.target import Target
from tests.fuzz.parsers.watch import GROWTH, SECONDS, BadInputWonError, watched

#: What the interpreter, numpy and the seeds take already, in MiB.
_BASE = 512


def main() -> int:
    """Run; the exit code says whether bad input won."""
    wanted = os.environ.get("FUZZ_TARGET", "")
    chosen = [target for name, target in TARGETS.items() if wanted in name]
    if not chosen:
        print(f"no target {wanted!r}; there are: {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    given = os.environ.get("FUZZ_INPUT")
    if given:
        for target in chosen:
            watched(target, Path(given).read_bytes())
        return 0
    seconds = float(os.environ.get("FUZZ_SECONDS", "600")) / len(chosen)
    guided = find_spec("atheris") is not None
    how = "led by coverage (atheris)" if guided else "at random: atheris is not installed"
    print(f"{len(chosen)} parsers, {seconds:.0f} s each, {how}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="virtintrospect-fuzz-"))
    failed = [
        target.name
        for target in chosen
        if not (_guided if guided else _at_random)(target, seconds, folder)
    ]
    print(f"{len(chosen)} parsers, {len(failed)} failures: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _guided(target: Target, seconds: float, folder: Path) -> bool:
    """A process of its own: libFuzzer does not return."""
    corpus = folder / "".join(c if c.isalnum() else "-" for c in target.name)
    corpus.mkdir()
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.parsers.cover", target.name,
            f"-max_total_time={max(1, int(seconds))}", "-max_len=262144",
            f"-timeout={SECONDS:.0f}", f"-rss_limit_mb={_BASE + (GROWTH >> 20)}",
            f"-artifact_prefix={folder}/found-", "-print_final_stats=1", str(corpus),
        ],
        capture_output=True, text=True, check=False, errors="replace",
    )  # fmt: skip
    lines = done.stderr.splitlines()
    runs = next((line.split()[-1] for line in lines if "number_of_executed_units" in line), "?")
    print(f"  {target.name:28} {runs:>8} inputs  {'failed' if done.returncode else ''}", flush=True)
    if done.returncode:
        print("\n".join((done.stdout + done.stderr).splitlines()[-60:]), file=sys.stderr)
        print(f"repeat it: make fuzz FUZZ_TARGET='{target.name}' FUZZ_INPUT={folder}/found-…")
    return done.returncode == 0


def _at_random(target: Target, seconds: float, folder: Path) -> bool:
    seeds, end, count = target.seeds(), time.monotonic() + seconds, 0
    chance = random.Random(int(os.environ.get("FUZZ_SEED") or time.time_ns()))
    while time.monotonic() < end:
        count += 1
        edits = [
            Edit(
                chance.randrange(12), chance.random() ** chance.choice((1, 4)),
                chance.choice((chance.randrange(168), chance.getrandbits(64))),
                chance.randrange(256),
            )
            for _ in range(chance.randint(1, 8))
        ]  # fmt: skip
        data = bent(chance.choice(seeds), seeds, edits)
        try:
            watched(target, data)
        except BadInputWonError as error:
            path = folder / "found"
            path.write_bytes(data)
            print(f"{error}\nrepeat it: make fuzz FUZZ_TARGET='{target.name}' FUZZ_INPUT={path}")
            return False
    print(f"  {target.name:28} {count:>8} inputs", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
