"""A summary of each session in its domain's own metadata, for other tools (``virsh metadata``)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from virtintrospect.cli.escape import printable
from virtintrospect.daemon.log import event
from virtintrospect.daemon.sessions import DomainSession
from virtintrospect.daemon.state import State
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.host import Host
from virtintrospect.insight.figures import Sample

if TYPE_CHECKING:
    from virtintrospect.daemon.hub import Hub

_log = logging.getLogger(__name__)

KEY, NAMESPACE = "virtintrospect", "urn:virtintrospect:session:1"
_PUBLISHED = (State.WAITING, State.READY, State.LOST, State.DETACHED)


def summary(session: DomainSession, sample: Sample | None) -> str:
    """The element; libvirt puts it into its namespace."""
    told = {"state": session.state.value, "since": str(int(session.machine.since))}
    if session.kernel:
        told |= {"os": session.os, "kernel": printable(session.kernel)}
    inside = "".join(
        f"<{part} {_attributes(sample[part], names)}/>"
        for part, names in (
            ("memory", ("memory_total", "memory_available", "swap_free")),
            ("load", ("load1", "load5", "load15")),
        )
        if sample and part in sample
    )
    return f"<session {_attributes(told, told)}>{inside}</session>"


def _attributes(values: Mapping[str, object], names: Mapping[str, object] | tuple[str, ...]) -> str:
    return " ".join(
        f"{name}={quoteattr(_allowed(str(values[name])))}" for name in names if name in values
    )


def _allowed(text: str) -> str:
    """Without characters that XML does not have."""
    return "".join(character if character.isprintable() else "?" for character in text)


class Publisher:
    """Publishes the summaries, over a read-write connection of its own."""

    def __init__(self, hub: Hub, latest: Mapping[str, Sample], seconds: float) -> None:
        self.hub = hub
        self.latest = latest
        self.seconds = seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metadata")
        self._host: Host | None = None
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.seconds)
            await self.publish()

    async def publish(self) -> None:
        """Publish what has changed."""
        sessions = [one for one in self.hub.sessions.values() if one.state in _PUBLISHED]
        present = {session.domain.uuid for session in sessions}
        self._said = {uuid: text for uuid, text in self._said.items() if uuid in present}
        for session in sessions:
            uuid = session.domain.uuid
            text = summary(session, self.latest.get(uuid))
            if text != self._said.get(uuid):
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, self._publish, uuid, text)

    def _publish(self, uuid: str, text: str) -> None:
        try:
            if self._host is None:
                self._host = Host(self.hub.uri, writable=True)
            self._host.publish(uuid, KEY, NAMESPACE, text)
            self._said[uuid] = text
        except VirtIntrospectError as error:
            event(_log, logging.INFO, "not published", uuid=uuid, error=error.message)
            host, self._host = self._host, None
            if host is not None:
                host.close()
