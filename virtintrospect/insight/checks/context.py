"""What rules look at, read once for all of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtintrospect.guests.linux.budget import Budget

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.insight.checks.allowed import Allowed
    from virtintrospect.insight.checks.code import Code
    from virtintrospect.model import Process

#: What numbers that make no sense lead to.
NONSENSE = (ArithmeticError, LookupError, TypeError, ValueError, struct.error)


@dataclass(frozen=True)
class Options:
    """What rules compare with; a rule without its own has nothing to say."""

    #: Sockets that may listen.
    listening: tuple[Allowed, ...] | None = None
    #: Release of the newest kernel that there is.
    newest_kernel: str | None = None
    #: What :meth:`Session.baseline <virtintrospect.session.Session.baseline>` gave once.
    baseline: Mapping[str, Any] | None = None
    #: Kernel images as the packages have them.
    images: tuple[Path, ...] = ()


class Context:
    """One look at a guest.

    :param guest: it.
    :param options: what to compare with.
    :param budget: what all rules together may cost.
    """

    def __init__(self, guest: LinuxGuest, options: Options, budget: Budget) -> None:
        self.guest = guest
        self.options = options
        self.budget = budget
        #: What could not be looked at.
        self.notes: list[str] = []

    def cannot(self, what: str) -> None:
        """Say that something was not checked: ``what`` is the rest of that sentence."""
        self.notes.append(what)

    @cached_property
    def code(self) -> Code:
        """Whose code is where."""
        from virtintrospect.insight.checks.code import Code

        return Code(self.guest, self.budget)

    @cached_property
    def processes(self) -> list[Process]:
        """The rows of ``ps``."""
        return self.guest.processes()
