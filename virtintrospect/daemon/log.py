"""The daemon's own log: one line an event, ``key=value``, with the journal's priorities."""

from __future__ import annotations

import logging
import os
import sys

from virtintrospect.cli.escape import printable

#: sd-daemon(3): what the journal takes off a line again.
_PRIORITY = {
    logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2,
}  # fmt: skip
#: Characters of one value; guests choose some of them.
_LONGEST = 512


def event(logger: logging.Logger, level: int, what: str, **values: object) -> None:
    """Log ``what key=value …``; values that are ``None`` are left out."""
    if logger.isEnabledFor(level):
        shown = [f"{key}={_value(value)}" for key, value in values.items() if value is not None]
        logger.log(level, "%s", " ".join([what, *shown]))


def _value(value: object) -> str:
    text = printable(value if isinstance(value, bytes) else str(value))[:_LONGEST]
    if text and not any(character in text for character in ' "=\\'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Formatter(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s")
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record).replace("\n", " | "))
        return f"<{_PRIORITY.get(record.levelno, 5)}>{text}" if self.journal else text


def to_stderr(level: str) -> None:
    """Send everything to standard error, as the journal likes it where that is who reads."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(journal="JOURNAL_STREAM" in os.environ))
    root = logging.getLogger("virtintrospect")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(level.upper())
