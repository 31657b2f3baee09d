"""One target under atheris (libFuzzer): bad input that reaches code which no other has reached.

``python -m tests.fuzz.parsers.cover TARGET [OPTION-OF-LIBFUZZER …] FOLDER``; the folder has the
seeds, and gets what reaches more. It does not return: libFuzzer ends the process.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["virtintrospect", "virtintrospect_kvm"]):
    from tests.fuzz.parsers.all import TARGETS
    from tests.fuzz.parsers.watch import watched


def main() -> None:
    """Fuzz until libFuzzer has enough."""
    target = TARGETS[sys.argv.pop(1)]
    target.seeds()
    atheris.Setup(sys.argv, lambda data: watched(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
