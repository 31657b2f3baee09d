"""What processes run: programs that are gone, code in anonymous memory, libraries put before."""

from __future__ import annotations

import re
from collections.abc import Iterator

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.areas import VM_EXEC, VM_WRITE, areas_of
from virtintrospect.guests.linux.ps import PF_KTHREAD
from virtintrospect.insight.checks.context import Context
from virtintrospect.insight.checks.rule import Hit, Rule, known, process, shortened

_DELETED = b" (deleted)"
#: Bytes of an environment that are looked at: more than programs start with.
_ENVIRONMENT = 1 << 17
#: Variables that preload something, in one environment.
_MOST_VARIABLES = 64
_VARIABLE = re.compile(rb"(?:^|\0)(LD_PRELOAD|LD_AUDIT)=([^\0]{1,4096})")
_PRELOAD_FILE = b"/etc/ld.so.preload"


def deleted(context: Context) -> Iterator[Hit]:
    """Executables that are no longer in any directory (``d_unlinked()``), or never were."""
    for row in context.processes:
        path = row.path
        if path is None or not path.endswith(_DELETED):
            continue
        memory = path.startswith(b"/memfd:")
        what = b"it runs from memory, from no file" if memory else b"its program was deleted"
        yield Hit(
            process(row.pid, row.name),
            what + b": " + path.removesuffix(_DELETED),
            known({"pid": row.pid, "path": path, "start_time": row.start_time}),
            "high" if memory else "",
        )


def writable_code(context: Context) -> Iterator[Hit]:
    """Anonymous memory that is writable and executable at once."""
    guest = context.guest
    members = {"pid": "tgid", "comm": "comm", "mm": "mm", "flags": "flags"}
    rows = [
        row
        for row in guest.tasks.rows(members, text=("comm",))
        if row["mm"] and not row["flags"] & PF_KTHREAD
    ]
    for row, areas in zip(
        rows, areas_of(guest, [row["mm"] for row in rows], context.budget), strict=False
    ):
        both = [
            area
            for area in areas
            if area.flags & VM_WRITE and area.flags & VM_EXEC and not area.file
        ]
        if both:
            size = sum(area.end - area.start for area in both)
            yield Hit(
                process(row["pid"], row["comm"]),
                b"%d KiB of its anonymous memory are writable and executable" % (size >> 10),
                {
                    "pid": row["pid"],
                    "areas": len(both),
                    "first": f"{both[0].start:#x}-{both[0].end:#x}",
                },
            )


def preloaded(context: Context) -> Iterator[Hit]:
    """``LD_PRELOAD`` and ``LD_AUDIT`` of processes, and /etc/ld.so.preload as far as cached."""
    guest = context.guest
    file = guest.cached_file(_PRELOAD_FILE)
    text = b"\n".join(piece for _, piece in file.pieces) if file else b""
    names = re.sub(rb"#[^\n]*", b"", text).replace(b":", b" ").split()
    if names:
        yield Hit(
            _PRELOAD_FILE,
            b"every dynamic program loads " + shortened(names),
            {"content": text[:256]},
            "high",
        )
    members = {
        "pid": "tgid", "comm": "comm", "flags": "flags", "pgd": "mm.pgd",
        "start": "mm.env_start", "end": "mm.env_end",
    }  # fmt: skip
    users: dict[tuple[bytes, bytes], list[bytes]] = {}
    for row in guest.tasks.rows(members, text=("comm",)):
        if not row["pgd"] or row["flags"] & PF_KTHREAD or context.budget.late():
            continue
        size = min(max((row["end"] or 0) - (row["start"] or 0), 0), _ENVIRONMENT)
        try:
            pieces = guest.user_space(row["pgd"]).read_available(row["start"] or 0, size)
        except FaultError:
            context.cannot(f"preload: the environment of process {row['pid']} cannot be reached")
            continue
        data = b"".join(piece for _, piece in pieces)
        who = b"%d (%s)" % (row["pid"], row["comm"].split(b"\0", 1)[0])
        for name, value in dict.fromkeys(_VARIABLE.findall(data)[:_MOST_VARIABLES]):
            if not context.budget.keep(len(value) + len(who) + 128):
                break
            users.setdefault((name, value), []).append(who)
    for (name, value), whose in users.items():
        count = b"process" if len(whose) == 1 else b"%d processes:" % len(whose)
        yield Hit(
            name + b"=" + value[:256],
            b"set for " + count + b" " + shortened(whose),
            {"processes": len(whose)},
        )


RULES = (
    Rule(
        id="deleted-executable",
        severity="medium",
        title="A process runs a program that is in no directory",
        looks_at="The executable of every process (/proc/PID/exe); one that exists in memory only "
        "(memfd) is high.",
        remedy="Look at what it does (`files --pid`, `sockets --pid`, `maps`), and dump the guest "
        "before you stop it: the program may be nowhere else. After an update restart the service.",
        false_positives="After an update of packages every service runs the old, deleted program "
        "until it is restarted. runc and crun run themselves from a memfd for a moment.",
        blind="Scripts run as their interpreter, which is there.",
        reference="T1070.004",
        check=deleted,
    ),
    Rule(
        id="writable-code",
        severity="medium",
        title="A process has anonymous memory that is writable and executable",
        looks_at="The memory areas of every process that belong to no file and have both rights.",
        remedy="See whether the program compiles at run time; if not, look at the memory "
        "(`dump`, `search --pid`, `read --pid`).",
        false_positives="Just-in-time compilers (Java, JavaScript, LuaJIT, PyPy, .NET, QEMU's TCG) "
        "and old programs with an executable stack.",
        blind="Code that was written first and made executable afterwards has one right at a time. "
        "The areas are read from the kernel's structures, not from the page tables.",
        reference="T1055",
        check=writable_code,
    ),
    Rule(
        id="preload",
        severity="medium",
        title="Programs are made to load a library before all others",
        looks_at="LD_PRELOAD and LD_AUDIT in the environment that each process was started with, "
        "and /etc/ld.so.preload (high) as the first process would find it.",
        remedy="Find out where the library comes from and what it replaces; `maps PID` shows "
        "whether it was loaded.",
        false_positives="Allocators (jemalloc, tcmalloc), fakeroot, faketime, libeatmydata, "
        "profilers, and desktop software.",
        blind="The guest's disk is not read: /etc/ld.so.preload is seen only while it is in the "
        "guest's memory, where whoever starts a dynamic program brings it. A process can "
        "overwrite its own environment, and what is swapped out is not seen.",
        reference="T1574.006",
        check=preloaded,
    ),
)
