"""Sockets that wait for others, against those that may be there."""

from __future__ import annotations

from collections.abc import Iterator

from virtintrospect.insight.checks.context import Context
from virtintrospect.insight.checks.rule import Hit, Rule, known
from virtintrospect.model import Socket

_FAMILIES = ("inet", "inet6")


def listeners(context: Context) -> dict[str, list[Socket]]:
    """Listening IP sockets with a port, by protocol, address and port."""
    found: dict[str, list[Socket]] = {}
    for socket in context.guest.sockets(listening=True):
        if socket.family in _FAMILIES and socket.local_port and socket.protocol != "raw":
            found.setdefault(place(socket), []).append(socket)
    return found


def place(socket: Socket) -> str:
    """``tcp 0.0.0.0:22``, ``udp [::]:53``."""
    address = str(socket.local_address)
    shown = f"[{address}]" if ":" in address else address
    return f"{socket.protocol} {shown}:{socket.local_port}"


def unexpected(context: Context) -> Iterator[Hit]:
    """Sockets that listen and are not among those that may."""
    wanted = context.options.listening
    if wanted is None:
        return
    names = {process.pid: process.name for process in context.processes}
    for where, sockets in listeners(context).items():
        first = sockets[0]
        address, port = str(first.local_address), first.local_port or 0
        if any(item.fits(first.protocol or "", address, port) for item in wanted):
            continue
        pids = sorted({socket.pid for socket in sockets if socket.pid is not None})
        who = b", ".join(b"%d (%s)" % (pid, names.get(pid, b"?")) for pid in pids[:4])
        yield Hit(
            where.encode(),
            b"nobody allowed it to listen; " + (b"process " + who if who else b"no process has it"),
            known({"pids": ",".join(map(str, pids)) or None, "net_namespace": first.net_namespace}),
        )


RULES = (
    Rule(
        id="listening",
        severity="medium",
        title="A socket listens that is not on the list",
        looks_at="TCP, UDP, SCTP and other IP sockets that wait for connections or datagrams, in "
        "all network namespaces, against --listening-allow.",
        remedy="See what the process is (`ps`, `files --pid`, `sockets --pid`); stop it, or allow "
        "the socket.",
        false_positives="A list that does not name all services. UDP sockets of clients (DNS, "
        "DHCP, NTP) that are not connected look like servers.",
        blind="Without --listening-allow it has nothing to compare with. Programs that answer "
        "without a listening socket (raw and packet sockets, eBPF, a kernel module) are not seen.",
        reference="T1571",
        check=unexpected,
        needs="--listening-allow",
    ),
)
