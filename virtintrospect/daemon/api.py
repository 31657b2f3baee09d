"""What can be asked over the socket: one method a question."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from virtintrospect.cli.escape import printable
from virtintrospect.cli.output import plain_value
from virtintrospect.daemon.server import RequestError
from virtintrospect.daemon.sessions import BusyError, DomainSession, NotReadyError
from virtintrospect.daemon.state import State
from virtintrospect.errors import GuestNotRecognisedError, MemoryAccessError
from virtintrospect.insight.checks.asked import findings
from virtintrospect.insight.columns import Table, record
from virtintrospect.insight.tables import CHECK, COMMANDS, LIST, PS, SESSIONS

if TYPE_CHECKING:
    from virtintrospect.daemon.hub import Hub
    from virtintrospect.guests.base import Guest

#: Rows of one line of an answer.
ROWS_A_LINE = 256
#: Seconds that a question waits for its session's other work.
_PATIENCE = 5.0
_LONGEST = 4096

TABLES = {table.name: table for table in (PS, CHECK, *COMMANDS)}


class Api:
    """Answers questions about the sessions of a hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    async def __call__(self, method: str, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Answer one question in one message or several."""
        methods = {
            "sessions": self._sessions,
            "list": self._list,
            "table": self._table,
            "attach": self._attach,
            "detach": self._detach,
        }
        if method not in methods:
            raise RequestError(
                "unsupported", f"no method {method!r}", hint=f"there are {', '.join(methods)}"
            )
        _check_uri(self.hub, params)
        rows, rest = await methods[method](params)
        for start in range(0, len(rows), ROWS_A_LINE):
            yield {"rows": rows[start : start + ROWS_A_LINE]}
        yield rest | {"done": True}

    async def _sessions(self, _params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        rows = [self._row(one) for one in self.hub.sessions.values()]
        return rows, {"libvirt": self.hub.connected, "uri": self.hub.uri}

    async def _list(self, params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Rows of ``list``; a domain whose session is not ready has no kernel there."""
        everything = params.get("all", False) is True
        try:
            domains = await self.hub.domains(active_only=not everything)
        except MemoryAccessError as error:
            raise RequestError("not-ready", error.message) from error
        rows = []
        for domain in domains:
            row: dict[str, Any] = {
                "id": domain.id, "name": domain.name, "uuid": domain.uuid, "state": domain.state
            }  # fmt: skip
            session = self.hub.sessions.get(domain.uuid)
            if session is not None and domain.active:
                row["session"] = session.state.value
                if session.state is State.READY:
                    row |= {"os": session.os, "kernel": session.kernel}
            rows.append(_plain(LIST, row))
        return rows, {"uri": self.hub.uri}

    async def _table(self, params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        table = TABLES.get(_text(params, "table"))
        if table is None:
            raise RequestError("unsupported", f"no table {params['table']!r} over the socket")
        arguments = _arguments(table, params.get("arguments", {}))
        session = self._session(params)

        def ask(guest: Guest) -> tuple[list[Any], dict[str, Any]]:
            if table is CHECK:
                found = findings(guest, **arguments)
            else:
                found = getattr(guest, table.source)(**arguments)
            records = [found] if table.single else found
            rows = [_plain(table, record(table, item)) for item in records]
            problems = [(printable(p.what), hex(p.address)) for p in guest.take_problems()]
            return rows, {"problems": problems}

        try:
            return await session.ask(ask, patience=_PATIENCE)
        except BusyError as error:
            raise RequestError("busy", error.message) from error
        except (NotReadyError, MemoryAccessError, GuestNotRecognisedError) as error:
            # It may have just ended or rebooted: whoever looks for himself sees what is true.
            raise RequestError("not-ready", error.message, hint=error.hint) from error

    async def _attach(self, params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        session = self._session(params)
        await self.hub.attach(session)
        return [self._row(session)], {}

    async def _detach(self, params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        session = self._session(params)
        await self.hub.detach(session, forever=params.get("forever", False) is True)
        return [self._row(session)], {}

    def _row(self, session: DomainSession) -> dict[str, Any]:
        row = session_row(session)
        if session.state is State.DETACHED:
            row["forever"] = session.domain.uuid in self.hub.detached
        return _plain(SESSIONS, row)

    def _session(self, params: dict[str, Any]) -> DomainSession:
        target = _text(params, "domain")
        session = self.hub.find(target)
        if session is None:
            raise RequestError(
                "unknown-domain",
                f"the daemon has no session for {target!r}",
                hint="`virt-introspect sessions` shows those there are",
            )
        return session


def session_row(session: DomainSession) -> dict[str, Any]:
    """A row of ``sessions``."""
    domain = session.domain
    return {
        "id": domain.id,
        "name": domain.name,
        "uuid": domain.uuid,
        "state": session.state.value,
        "since": int(session.machine.since),
        "driver": session.driver or None,
        "transport": session.transport or None,
        "kernel": session.kernel or None,
        "cpu_time": round(session.cost.seconds * 1000),
        "looks": session.cost.count,
        "error": session.error or None,
    }


def _plain(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    return {
        column.name: plain_value(column.unit, value)
        for column in table.columns
        if (value := row.get(column.name)) is not None
    }


def _text(params: dict[str, Any], key: str) -> str:
    value = params.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        raise RequestError("bad-request", f"params.{key} must be a string")
    return value


def _check_uri(hub: Hub, params: dict[str, Any]) -> None:
    """A question about another libvirt than ours is not for us."""
    uri = params.get("uri")
    if uri is not None and uri not in (hub.uri, hub.config.libvirt.uri):
        raise RequestError("other-host", f"this daemon looks after {hub.uri}")


def _arguments(table: Table, given: Any) -> dict[str, Any]:
    """The arguments of a table's method, checked against its declaration."""
    switches = {name for name, _ in table.switches}
    texts = {name for name, _ in table.texts} | ({"pattern"} if table.pattern else set())
    numbers = {table.argument} if table.argument else set()
    if table.by_pid:
        numbers.add("pid")
    if not isinstance(given, dict):
        raise RequestError("bad-request", "params.arguments must be an object")
    for name, value in given.items():
        if name in switches and isinstance(value, bool):
            continue
        if name in texts and (value is None or (isinstance(value, str) and len(value) <= _LONGEST)):
            continue
        if name in numbers and (value is None or type(value) is int) and name not in switches:
            if value is None and name == table.argument:
                raise RequestError("bad-request", f"{table.name} needs {name}")
            continue
        raise RequestError("unsupported", f"{table.name} does not take {name!r} like that")
    if table.argument and table.argument not in given:
        raise RequestError("bad-request", f"{table.name} needs {table.argument}")
    return given
