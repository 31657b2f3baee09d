"""Hints on file systems whose files are memory."""

from __future__ import annotations

from collections.abc import Iterator

from virtintrospect.insight.hints.facts import Facts, size
from virtintrospect.model import Hint


def filesystem_hints(facts: Facts) -> Iterator[Hint]:
    """Those that are nearly full, and those without a limit that take much of the memory."""
    policy, window = facts.policy, facts.window
    memory = window.last("memory", "memory_total") or 0.0
    for row in window.rows("filesystems"):
        if len(row) != 6 or not all(isinstance(value, int) for value in row[2:]):
            continue
        path, kind, used, most, files, files_most = row
        named = f"{kind} on {path or 'a place that is not known'}"
        evidence = {"path": path, "used": used, "size": most or None}
        evidence |= {"files": files, "files_most": files_most} if files_most else {}
        first = window.named("filesystems", key=2, value=2).get((str(path), str(kind)))
        evidence |= {"used_at_first": first[0] if first else None}
        if most and 100 * used / most >= policy.full_percent:
            yield facts.hint(
                "io",
                "watch",
                f"the {named} is {100 * used / most:.0f} % full: {size(most - used)} of "
                f"{size(most)} are left; in the guest: mount -o remount,size=…",
                evidence,
                "what fills it is removed by itself",
                current=used,
            )
        elif files_most and 100 * files / files_most >= policy.full_percent:
            yield facts.hint(
                "io",
                "watch",
                f"the {named} has {files} of the {files_most} files that it may have; in the "
                "guest: mount -o remount,nr_inodes=…",
                evidence,
                "what fills it is removed by itself",
                current=files,
            )
        elif not most and memory and 100 * used / memory >= policy.unlimited_percent:
            yield facts.hint(
                "memory",
                "watch",
                f"the {named} takes {size(used)}, {100 * used / memory:.0f} % of the guest's "
                "memory, and nothing limits it",
                evidence | {"memory_total": memory},
                "it has always been so large, and does not grow",
                current=used,
            )
