"""Following hints on all guests of the host, round by round (``[govern]``; off by default).

A guest in trouble gets more, as far as the host can spare it, and several share what there is.
Memory is taken only while the host itself is short of it. What
:mod:`virtintrospect.plugin.adjust` promises holds for each change: steps, watched, limits, a log.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.daemon.log import event
from virtintrospect.daemon.state import State
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.host import Host
from virtintrospect.insight.figures import Sample, sample
from virtintrospect.insight.hints import Facts, hints
from virtintrospect.insight.history import Window, read_history
from virtintrospect.insight.policy import load_policy
from virtintrospect.plugin.adjust import can_follow, follow, host_available

if TYPE_CHECKING:
    from virtintrospect.daemon.config import Govern
    from virtintrospect.daemon.hub import Hub
    from virtintrospect.daemon.sessions import DomainSession
    from virtintrospect.domain import Domain
    from virtintrospect.model import Hint

_log = logging.getLogger(__name__)

_MIB = 1 << 20
#: Seconds to wait for a session's other work before a sample is given up.
_PATIENCE = 10.0


class Wish(NamedTuple):
    """A hint that can be followed, and whose it is."""

    session: DomainSession
    domain: Domain
    hint: Hint


class Governor:
    """Looks at the history of every ready guest, and follows its hints on memory.

    :param folder: the daemon's ``state_dir``: history is read there, changes are noted there.
    """

    def __init__(self, hub: Hub, config: Govern, folder: Path) -> None:
        self.hub = hub
        self.config = config
        self.policy = load_policy(config.policy)
        self._history = folder / "history"
        self._changes = folder / "adjusted.jsonl"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="govern")
        self._host: Host | None = None
        #: When each domain was last changed, and when it may be next; seconds since the epoch.
        self._changed: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.config.interval_seconds)
            await self.round()

    async def round(self) -> None:
        """One look at all guests."""
        ready = [one for one in self.hub.sessions.values() if one.state is State.READY]
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._round, ready, loop)

    def _round(self, ready: list[DomainSession], loop: asyncio.AbstractEventLoop) -> None:
        try:
            if self._host is None:
                self._host = Host(self.hub.uri, writable=True)
            wishes = [wish for session in ready for wish in self._wishes(session, self._host)]
            for wish in self.chosen(wishes, host_available()):
                self._follow(wish, self._host, loop)
        except VirtIntrospectError as error:
            event(_log, logging.WARNING, "not governed", error=error.message)
            host, self._host = self._host, None
            if host is not None:
                host.close()

    def _wishes(self, session: DomainSession, host: Host) -> list[Wish]:
        uuid = session.domain.uuid
        # What was before the last change says nothing of what is now.
        since = max(time.time() - self.config.window_seconds, self._changed.get(uuid, 0.0))
        try:
            window = Window(read_history(self._history, uuid, since))
        except OSError as error:
            event(_log, logging.WARNING, "no history", domain=session.domain.name, error=error)
            return []
        if len(window) < 2:
            return []
        domain = host.domain(uuid)  # with the balloon's target of this moment
        found = hints(Facts(window, self.policy, domain))
        return [
            Wish(session, domain, hint)
            for hint in found
            if hint.resource == "memory" and can_follow(hint)
        ]

    def chosen(self, wishes: list[Wish], available: int) -> list[Wish]:
        """Those that are followed in this round, guests in trouble last: memory comes first.

        :param available: bytes that this host has left.
        """
        config = self.config
        shrinks = [
            wish
            for wish in wishes
            if wish.hint.action == "shrink"
            and available < config.host_short_mib * _MIB
            and wish.hint.confidence >= config.least_confidence
            and time.time() - self._changed.get(wish.domain.uuid, 0.0) > config.rest_seconds
        ]
        grows = [wish for wish in wishes if wish.hint.action == "grow"]
        spare = max(0, available - self.policy.host_reserve_mib * _MIB)
        return shrinks + [_share(wish, spare // len(grows)) for wish in grows]

    def _follow(self, wish: Wish, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        name = wish.domain.name

        def take() -> Sample:
            asked = wish.session.ask(partial(sample), patience=_PATIENCE)
            return asyncio.run_coroutine_threadsafe(asked, loop).result(3 * _PATIENCE)

        try:
            done = follow(wish.hint, wish.domain, host, self.policy, take, self._changes)
        except (VirtIntrospectError, OSError, TimeoutError) as error:
            event(_log, logging.INFO, "not adjusted", domain=name, error=error)
            return
        self._changed[wish.domain.uuid] = time.time()
        event(
            _log, logging.INFO, "adjusted", domain=name, before=done.before // _MIB,
            after=done.after // _MIB, outcome=done.outcome, reason=done.reason,
        )  # fmt: skip


def _share(wish: Wish, most: int) -> Wish:
    """A wish for more, cut to what there is for each who asks."""
    current, wanted = wish.hint.current or 0, wish.hint.recommended or 0
    return wish._replace(
        hint=dataclasses.replace(wish.hint, recommended=min(wanted, current + most))
    )
