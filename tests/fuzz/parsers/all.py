"""All targets."""

from __future__ import annotations

from tests.fuzz.parsers import guest, host, images, qemu, symbols

TARGETS = {
    target.name: target
    for group in (images, symbols, guest, host, qemu)
    for target in group.TARGETS
}  # fmt: skip
