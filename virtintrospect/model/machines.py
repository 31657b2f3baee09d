"""Guests that a guest runs itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InnerGuest:
    """One row of ``nested``: a guest inside the guest."""

    #: Of the process that runs it.
    pid: int
    #: As that process's command line has it (QEMU's ``-name`` and ``-uuid``).
    name: bytes | None
    uuid: bytes | None
    #: Of the process.
    program: bytes | None
    vcpus: int
    #: Format of its nested tables: ``npt-5-level``. ``None``: it has none, and cannot be read.
    page_mode: str | None
    #: Physical address of the top one, in the guest that runs it.
    root: int | None
    #: Of its ``struct kvm``.
    address: int
