"""Device numbers."""

from __future__ import annotations

from functools import lru_cache

#: MINORBITS (include/linux/kdev_t.h).
_MINOR_BITS = 20


@lru_cache(maxsize=256)
def device_name(number: int | None) -> str | None:
    """A ``dev_t`` as ``major:minor``, in the two hexadecimal digits of /proc/PID/maps."""
    if number is None:
        return None
    return f"{number >> _MINOR_BITS:02x}:{number & ((1 << _MINOR_BITS) - 1):02x}"
