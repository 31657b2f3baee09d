"""``python -m benchmarks.daemon cycles|guests N``: the daemon at work, and idle."""

from __future__ import annotations

import sys

from benchmarks.daemon import cycles, guests

_MODES = {"cycles": cycles.main, "guests": guests.main}


def main() -> int:
    """Run one of them; 0 when its goals are reached."""
    match sys.argv[1:]:
        case [mode, count] if mode in _MODES and count.isdecimal():
            return _MODES[mode](int(count))
    print(f"usage: python -m benchmarks.daemon {'|'.join(_MODES)} N", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
