"""Made-up parts of a fleet's report, in the form that hosts send them, of any size."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

GIB = 1 << 30
NOW = 1_796_000_000
RELEASES = (
    "6.12.117+deb12-cloud-amd64",
    "6.1.0-56-cloud-amd64",
    "5.10.0-42-amd64",
    "7.2.4-cloud-amd64",
)
_KERNEL = (
    "kworker/0:1-events",
    "ksoftirqd/0",
    "rcu_sched",
    "migration/0",
    "kswapd0",
    "jbd2/vda1-8",
)
_DAEMONS = ("systemd", "sshd", "nginx", "postgres", "java", "python3", "dbus-daemon", "cron")
_RULES = (
    ("critical", "hidden-process", "pid 4711 (backdoor)", "a process that no task list has"),
    ("critical", "syscall-table", "getdents64", "an entry that points outside the kernel's text"),
    ("high", "hidden-module", "module at 0xffffffffc0a4e000", "a module that the list lacks"),
    ("medium", "deleted-executable", "pid 912 (nginx)", "its executable was deleted"),
    ("medium", "drift", "port 4444/tcp", "it listens now and did not in the baseline"),
    ("low", "old-kernel", "5.10.0-42-amd64", "older than the newest of the fleet"),
    ("info", "taint", "O", "a module from outside the kernel's sources is loaded"),
)


def fleet(guests: int, processes: int, hosts: int = 0, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Parts of hosts: so many guests in all, each with so many processes."""
    dice = random.Random(seed)
    hosts = hosts or max(1, guests // 20)
    for host in range(hosts):
        name = f"hv{host + 1:03}.example.net"
        number = guests // hosts + (host < guests % hosts)
        if hosts > 100 and host % 50 == 49:
            message = "Failed to connect to the host via ssh: Connection timed out"
            yield {"host": name, "status": "unreachable", "message": message, "guests": []}
        else:
            yield _host(name, number, processes, dice)


def _host(name: str, guests: int, processes: int, dice: random.Random) -> dict[str, Any]:
    part: dict[str, Any] = {"host": name, "status": "ok", "version": "0.1.0", "time": NOW}
    part |= {"guests": [], "findings": [], "hints": []}
    part["asked"] = ["guest_info", "guest_audit", "guest_hints"]
    for index in range(guests):
        guest = f"{dice.choice(('web', 'db', 'app', 'ci', 'mail'))}{index:02}-{name[:5]}"
        found: dict[str, Any] = {"name": guest, "uuid": _uuid(dice), "state": "running"}
        if dice.random() < 0.03:
            found["message"] = "guest not recognised: no Linux kernel was found in its memory"
        else:
            found["tables"] = _tables(processes, dice)
            part["findings"] += _findings(guest, dice)
            part["hints"] += _hints(guest, found["tables"]["memory"], dice)
        found["checked"] = "tables" in found
        part["guests"].append(found)
    return part


def _uuid(dice: random.Random) -> str:
    text = f"{dice.getrandbits(128):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _tables(processes: int, dice: random.Random) -> dict[str, Any]:
    total = dice.choice((1, 2, 4, 8, 16, 64)) * GIB
    pressures = [
        {"resource": resource, "kind": "some", "avg60": round(dice.expovariate(2), 2)}
        for resource in ("cpu", "memory", "io")
    ]
    return {
        "info": {
            "os": "Linux",
            "release": dice.choices(RELEASES, (6, 8, 1, 2))[0],
            "hostname": f"host{dice.randrange(9999)}",
            "uptime_seconds": dice.randrange(90 * 86400),
            "cpus": dice.choice((1, 2, 4, 8)),
        },
        "memory": {
            "memory_total": total,
            "memory_available": int(total * dice.betavariate(3, 2)) & ~4095,
        },
        "pressure": pressures,
        "ps": [_process(index, dice) for index in range(processes)],
        "sockets": [
            {"pid": dice.randrange(1, 900), "protocol": "tcp", "local_address": "0.0.0.0",
             "local_port": port, "uid": 0, "net_namespace": 4026531840}
            for port in dice.sample((22, 25, 80, 443, 5432, 8080, 9100), 3)
        ],
    }  # fmt: skip


def _process(index: int, dice: random.Random) -> dict[str, Any]:
    pid = 1 + index * 3 + dice.randrange(3)
    row = {"pid": pid, "parent": 2, "state": "I" if index % 3 else "S", "uid": 0}
    row["start_time"] = NOW - dice.randrange(86400)
    if index * 2 < 100:
        return {**row, "name": dice.choice(_KERNEL), "resident_size": 0}
    name = dice.choice(_DAEMONS)
    cmdline = f"/usr/sbin/{name}"
    if dice.random() < 0.3:  # some are unlike any other
        cmdline += f" --id {_uuid(dice)} --listen 10.0.{dice.randrange(256)}.{dice.randrange(256)}"
    size = dice.randrange(200, 60000) * 4096
    return {**row, "parent": 1, "name": name, "uid": dice.choice((0, 33, 104, 1000)),
            "resident_size": size, "cmdline": cmdline}  # fmt: skip


def _findings(guest: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    for number, (severity, rule, subject, detail) in enumerate(_RULES):
        if dice.random() < (0.002, 0.002, 0.004, 0.05, 0.03, 0.2, 0.1)[number]:
            found = {"severity": severity, "rule": rule, "subject": subject, "detail": detail}
            found["evidence"] = "address=0xffffffffc0a4e000 table=0xffffffff9c2003a0"
            found["remedy"] = "Look at the guest from outside, keep a dump, then rebuild it."
            yield {"domain": guest, **found}


def _hints(guest: str, memory: dict[str, int], dice: random.Random) -> Iterator[dict[str, Any]]:
    total = memory["memory_total"]
    common: dict[str, Any] = {"domain": guest}
    common["evidence"] = ["used_at_most=58679296", "samples=7"]
    common |= {"confidence": round(dice.uniform(0.1, 1), 2), "refuted_by": "pages come back"}
    if memory["memory_available"] > total * 0.7:
        wanted = total // 2
        yield {**common, "resource": "memory", "action": "shrink", "current": total,
               "recommended": wanted, "virsh": f"virsh setmem {guest} {wanted >> 10} --live",
               "reason": "it never needed more than half of what it has"}  # fmt: skip
    elif memory["memory_available"] < total * 0.2:
        yield {**common, "resource": "memory", "action": "grow", "current": total,
               "recommended": total * 5 // 4, "reason": "tasks waited for memory"}  # fmt: skip
    if dice.random() < 0.1:
        yield {**common, "resource": "cpu", "action": "shrink", "current": 4, "recommended": 2,
               "reason": "95 % of the time half of the vCPUs would have sufficed"}  # fmt: skip
