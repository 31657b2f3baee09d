"""All targets."""

from __future__ import annotations

from tests.fuzz.parsers import guest, host, images, symbols

TARGETS = {
    target.name: target
    for group in (images, symbols, guest, host)
    for target in group.TARGETS
}  # fmt: skip
