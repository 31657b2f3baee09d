"""Time zones, out of a file (tzfile(5)) that a stranger has written."""

from __future__ import annotations

import struct

from virtintrospect.errors import CorruptDataError

#: No abbreviation of a zone is longer.
_MAX_NAME = 64
#: What zoneinfo raises for bytes that are no zone, and datetime for a clock of nonsense.
_REFUSALS = (ValueError, struct.error, OverflowError, OSError, LookupError, TypeError)


def zone_at(seconds: int, content: bytes | None, name: bytes) -> tuple[str, int]:
    """Abbreviation of a zone at a moment, and how many seconds it is ahead of UTC.

    :param seconds: since the epoch.
    :param content: of the zone's file; ``None`` takes this host's rules for ``name``.
    :param name: e.g. ``Europe/Vienna``.
    :raises CorruptDataError: that is no zone, or no time.
    """
    import io
    from datetime import datetime
    from zoneinfo import ZoneInfo

    try:
        if content is not None:
            zone = ZoneInfo.from_file(io.BytesIO(content))
        else:
            zone = ZoneInfo(name.decode("ascii"))
        local = datetime.fromtimestamp(seconds, zone)
        offset, abbreviation = local.utcoffset(), local.tzname()
    except _REFUSALS as error:
        raise CorruptDataError(f"{error} ({type(error).__name__})", 0) from error
    if offset is None or not abbreviation:
        raise CorruptDataError("the zone has no offset", 0)
    return abbreviation[:_MAX_NAME], int(offset.total_seconds())
