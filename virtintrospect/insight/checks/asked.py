"""Checks as they are asked for: by a command, or over the daemon's socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virtintrospect.errors import UsageError
from virtintrospect.guests.base import Guest
from virtintrospect.insight.checks import Options, check
from virtintrospect.insight.checks.allowed import allowed
from virtintrospect.insight.checks.kernel import is_release
from virtintrospect.model import Finding


def findings(
    guest: Guest,
    rules: str | None = None,
    severity: str | None = None,
    listening: str | None = None,
    newest_kernel: str | None = None,
    baseline: Mapping[str, Any] | None = None,
    images: tuple[Path, ...] = (),
) -> list[Finding]:
    """Findings, by arguments that are texts.

    :param rules: ids separated by commas.
    :param severity: the least severe that is wanted.
    :param listening: sockets that may listen, separated by commas.
    :param newest_kernel: as of :class:`~virtintrospect.insight.checks.context.Options`, as are
        the others.
    :raises UsageError: a text makes no sense.
    """
    if newest_kernel is not None and not is_release(newest_kernel):
        raise UsageError(
            f"{newest_kernel!r} is no release of a kernel", hint="write it as uname -r prints it"
        )
    options = Options(
        listening=None if listening is None else tuple(map(allowed, _split(listening))),
        newest_kernel=newest_kernel,
        baseline=baseline,
        images=images,
    )
    return check(guest, _split(rules or ""), severity=severity or "info", options=options)


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]
