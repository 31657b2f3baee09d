"""Who processes are: credentials that two of them share, root where nobody let him in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from virtintrospect.guests.linux.ps import PF_KTHREAD
from virtintrospect.insight.checks.context import Context
from virtintrospect.insight.checks.rule import Hit, Rule, process, shortened

#: include/uapi/linux/stat.h
_S_ISUID = 0o4000

_MEMBERS = {
    "pid": "tgid",
    "comm": "comm",
    "flags": "flags",
    "exit": "exit_state",
    "cred": "real_cred",
    "uid": "real_cred.uid.val",
    "euid": "real_cred.euid.val",
    "parent": "real_parent.tgid",
    "parent_uid": "real_parent.real_cred.uid.val",
    "parent_euid": "real_parent.real_cred.euid.val",
    "parent_comm": "real_parent.comm",
    "mode": "mm.exe_file.f_inode.i_mode",
    "owner": "mm.exe_file.f_inode.i_uid.val",
}


def _rows(context: Context) -> Iterator[dict[str, Any]]:
    return context.guest.tasks.rows(_MEMBERS, text=("comm", "parent_comm"))


def shared(context: Context) -> Iterator[Hit]:
    """``task_struct.real_cred`` of several processes at one address.

    Threads share their credentials; ``copy_creds()`` (kernel/cred.c) gives every new process its
    own, and nothing but the first idle task has ``init_cred``.
    """
    owners: dict[int, list[dict[str, Any]]] = {}
    for row in _rows(context):
        if row["cred"] and not row["exit"]:
            owners.setdefault(row["cred"], []).append(row)
    first = context.guest.symbols.get("init_cred")
    for cred, rows in owners.items():
        who = shortened([process(row["pid"], row["comm"]) for row in rows])
        if cred == first:
            yield Hit(
                process(rows[0]["pid"], rows[0]["comm"]),
                b"it has the kernel's own credentials, init_cred, as have: " + who,
                {"cred": hex(cred), "uid": rows[0]["uid"]},
            )
        elif len(rows) > 1:
            pids = ",".join(str(row["pid"]) for row in rows[:64])
            yield Hit(
                b"credentials of " + process(rows[0]["pid"], rows[0]["comm"]),
                b"one set of credentials serves several processes: " + who,
                {"cred": hex(cred), "uid": rows[0]["uid"], "pids": pids},
            )


def root_child(context: Context) -> Iterator[Hit]:
    """User 0 whose parent is another user, and whose program is not setuid root."""
    for row in _rows(context):
        if row["flags"] & PF_KTHREAD or row["exit"] or row["mode"] is None:
            continue
        if row["euid"] != 0 or not row["parent_uid"] or not row["parent_euid"]:
            continue
        if row["mode"] & _S_ISUID and row["owner"] == 0:
            continue
        yield Hit(
            process(row["pid"], row["comm"]),
            b"it runs as root, its parent is user %d: " % row["parent_uid"]
            + process(row["parent"], row["parent_comm"]),
            {
                "pid": row["pid"],
                "uid": row["uid"],
                "euid": row["euid"],
                "parent": row["parent"],
                "parent_uid": row["parent_uid"],
            },
        )


RULES = (
    Rule(
        id="shared-credentials",
        severity="critical",
        title="Processes share one set of credentials",
        looks_at="The address of the credentials of every process: a new process gets its own, so "
        "two that have the same were made to by somebody; so was one that has init_cred.",
        remedy="Take the guest off the network, dump it, and look for an exploit of the kernel "
        "or a module: `modules`, `dmesg`, `check`.",
        false_positives="None is known: threads are one process here.",
        blind="A process whose user ids were overwritten in place has credentials of its own; "
        "root-child may see it.",
        reference="T1068",
        check=shared,
    ),
    Rule(
        id="root-child",
        severity="medium",
        title="A root process whose parent is another user, and no setuid program",
        looks_at="Processes of user 0 (that of the initial user namespace) whose parent is not, "
        "and whose executable is not setuid root.",
        remedy="Find out how it became root: `ps --tree`, `logins`, the guest's audit log.",
        false_positives="sudo and pkexec become the program that they start where nothing keeps "
        "them (pkexec always does). A root process whose parent has ended may go to a user's "
        "service manager (systemd --user).",
        blind="A root process that was reparented to process 1 has root as its parent.",
        reference="T1548",
        check=root_child,
    ),
)
