"""Hints on how the host keeps a guest's pages: huge pages, NUMA nodes, merged by KSM."""

from __future__ import annotations

from collections.abc import Iterator

from virtintrospect.insight.hints.facts import MIB, Facts, size
from virtintrospect.model import Hint


def huge_hints(facts: Facts) -> Iterator[Hint]:
    """Memory in use, in whole pieces, that the host has in small pages."""
    window, policy = facts.window.here, facts.policy
    whole = facts.whole
    if whole is None or window.last("vmm", "resident") is None:
        return
    huge = sum(window.last("vmm", name) or 0.0 for name in ("anon_huge", "shmem_huge", "hugetlb"))
    gain = whole - huge
    if gain < policy.huge_mib * MIB or huge > whole * policy.huge_percent / 100:
        return
    mode = window.text("host", "shmem_huge" if facts.shared else "huge")
    off = mode in (("never", "deny") if facts.shared else ("never",))
    switch = "shmem_enabled" if facts.shared else "enabled"
    value = "advise" if facts.shared else "madvise"
    restart = "hugepages in its memoryBacking, which takes a restart"
    yield facts.hint(
        "memory",
        "huge",
        f"{size(whole)} of its memory are in use in whole pieces of 2 MiB, and the host has "
        f"{size(huge)} of it in huge pages: "
        + (
            # Modes hold for what is done later ("Need of application restart" of the kernel's
            # admin-guide/mm/transhuge.rst): khugepaged learns of a QEMU by its next page fault.
            f"echo {value} > /sys/kernel/mm/transparent_hugepage/{switch} (a QEMU that has touched "
            f"all of its memory before may need a restart), or {restart}"
            if off
            else restart
        ),
        {
            "used_in_whole_pieces": whole,
            "anon_huge": window.last("vmm", "anon_huge"),
            "shmem_huge": window.last("vmm", "shmem_huge"),
            "hugetlb": window.last("vmm", "hugetlb"),
            "resident": window.last("vmm", "resident"),
            "transparent_hugepage": mode or None,
            "hugepages_free": window.last("host", "hugepages_free"),
        },
        "the guest is no faster with huge pages, or it gives that memory back soon",
        current=int(huge),
        recommended=int(whole),
    )


def numa_hints(facts: Facts) -> Iterator[Hint]:
    """Memory on several nodes of the host that one of them could hold."""
    window, policy = facts.window.here, facts.policy
    rows = [row for row in window.rows("vmm", "nodes") if _numbers(row, 2)]
    total = sum(row[1] for row in rows)
    if len(rows) < 2 or total < policy.numa_mib * MIB or facts.has_numa:
        return
    node, most = max(rows, key=lambda row: row[1])
    if 100 * most / total > policy.numa_percent:
        return
    room = {row[0]: row[2] for row in window.rows("host", "node_memory") if _numbers(row, 3)}
    fits = {row[0] for row in rows if row[0] in room and total - row[1] <= room[row[0]]}
    if node not in fits:
        return  # none that has most of it has room for the rest
    shares = ", ".join(f"{100 * row[1] / total:.0f} % on node {row[0]}" for row in rows)
    yield facts.hint(
        "memory",
        "place",
        f"its memory lies on {len(rows)} NUMA nodes of the host ({shares}), and node {node} has "
        "room for all of it: its vCPUs wait for memory that is far away",
        {f"node_{row[0]}": row[1] for row in rows}
        | {"node": node, "node_free": room[node], "host_cpus_allowed": facts.allowed_cpus},
        "its vCPUs need the CPUs of several nodes",
        current=int(most),
        recommended=int(total),
        virsh=facts.virsh("numatune", "--nodeset", str(node), "--live"),
    )


def merge_hints(facts: Facts) -> Iterator[Hint]:
    """Pages that are the same as others of this host, and could be one (KSM)."""
    window, found = facts.window.here, facts.identical
    if found is None or not facts.mergeable:
        return
    merged = window.last("vmm", "merged") or 0.0
    gain = found.size - merged
    if gain < facts.policy.identical_mib * MIB:
        return
    runs = window.last("host", "ksm", "run") == 1
    yield facts.hint(
        "memory",
        "merge",
        f"about {size(found.size)} of its pages are the same as others, {size(found.shared)} of "
        f"them as other guests': KSM "
        + (
            f"has merged {size(merged)} of them so far"
            if runs
            else "does not run (echo 1 > /sys/kernel/mm/ksm/run)"
        ),
        {
            "identical": found.size,
            "identical_with_others": found.shared,
            "zero": found.zero,
            "pages_looked_at": found.looked_at,
            "pages_hashed": found.hashed,
            "merged": merged,
            "ksm_run": window.last("host", "ksm", "run"),
            "ksm_sharing": window.last("host", "ksm", "pages_sharing"),
        },
        "the guests write to these pages soon; or they must not learn of each other by how long "
        "a write takes, for which merging is to be left off",
        current=int(merged),
        recommended=int(found.size),
    )


def _numbers(row: list[object], count: int) -> bool:
    return len(row) >= count and all(
        isinstance(value, int) and not isinstance(value, bool) for value in row[:count]
    )
