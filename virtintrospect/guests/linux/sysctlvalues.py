"""Values of kernel parameters, as the functions of kernel/sysctl.c print them.

A parameter's ``proc_handler`` says what its variable is. Those that do more than print a plain
variable have no value here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.system import tick

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: Longest variable; strings have a page at most.
_MAX_SIZE = 4096
#: Bits of the largest bitmap: ports.
_MAX_BITS = 1 << 16
_NANOSECONDS = 1_000_000_000
#: USER_HZ.
_USER_HZ = 100

#: What is printed → the handlers that print it. Where others only check what is written, they
#: are here, too.
_HANDLERS = {
    "int": """
        proc_dointvec proc_dointvec_minmax proc_dointvec_minmax_sysadmin
        proc_dointvec_minmax_coredump proc_dointvec_minmax_warn_RT_change
        proc_dointvec_minmax_bpf_enable proc_dointvec_minmax_bpf_restricted proc_do_dev_weight
        neigh_proc_dointvec neigh_proc_dointvec_zero_intmax devinet_conf_proc
        devinet_sysctl_forward ipv4_doint_and_flush addrconf_sysctl_forward
        addrconf_sysctl_proxy_ndp addrconf_sysctl_disable addrconf_sysctl_mtu
        addrconf_sysctl_ignore_routes_with_linkdown addrconf_sysctl_disable_policy
        addrconf_sysctl_addr_gen_mode addrconf_sysctl_force_forwarding""",
    "uint": "proc_douintvec proc_douintvec_minmax proc_dopipe_max_size",
    "ulong": "proc_doulongvec_minmax proc_dolongvec_minmax_bpf_restricted",
    "u8": "proc_dou8vec_minmax",
    "bool": "proc_dobool",
    "string": "proc_dostring proc_dostring_coredump proc_do_uts_string",
    "seconds": "proc_dointvec_jiffies neigh_proc_dointvec_jiffies",
    "user_ticks": "proc_dointvec_userhz_jiffies neigh_proc_dointvec_userhz_jiffies",
    "milliseconds": """
        proc_dointvec_ms_jiffies proc_dointvec_ms_jiffies_minmax neigh_proc_dointvec_ms_jiffies
        neigh_proc_dointvec_ms_jiffies_positive""",
    "long_milliseconds": "proc_doulongvec_ms_jiffies_minmax",
    # What these print has the size of the variable; they do more only when it is written.
    "plain": """
        apparmor_dointvec compaction_proactiveness_sysctl_handler dirty_background_bytes_handler
        dirty_background_ratio_handler dirty_bytes_handler dirty_ratio_handler
        dirty_writeback_centisecs_handler dirtytime_interval_handler flow_limit_table_len_sysctl
        ftrace_enable_sysctl ipv4_fwd_update_priority lowmem_reserve_ratio_sysctl_handler
        min_free_kbytes_sysctl_handler mmap_min_addr_handler overcommit_kbytes_handler
        overcommit_policy_handler overcommit_ratio_handler
        percpu_pagelist_fraction_sysctl_handler percpu_pagelist_high_fraction_sysctl_handler
        perf_cpu_time_max_percent_handler perf_event_max_sample_rate_handler
        perf_event_max_stack_handler perf_proc_update_handler proc_blackhole_detect_timeout
        proc_do_rointvec proc_dohung_task_timeout_secs proc_fib_multipath_hash_fields
        proc_fib_multipath_hash_policy proc_ipc_dointvec proc_ipc_dointvec_minmax
        proc_ipc_dointvec_minmax_orphans proc_ipc_doulongvec_minmax proc_ipc_sem_dointvec
        proc_mq_dointvec proc_mq_dointvec_minmax proc_rt6_multipath_hash_fields
        proc_rt6_multipath_hash_policy proc_soft_watchdog proc_tfo_blackhole_detect_timeout
        proc_watchdog proc_watchdog_thresh sched_proc_update_handler sched_rr_handler
        sched_rt_handler stack_trace_sysctl sysctl_min_slab_ratio_sysctl_handler
        sysctl_min_unmapped_ratio_sysctl_handler sysctl_panic_print_handler
        sysctl_sched_uclamp_handler timer_migration_handler tracepoint_printk_sysctl
        watermark_boost_factor_sysctl_handler watermark_scale_factor_sysctl_handler
        yama_dointvec_minmax""",
    "neighbour": "neigh_proc_base_reachable_time ndisc_ifinfo_sysctl_change",
    "bitmap": "proc_do_large_bitmap",
    "static_key": "proc_do_static_key",
}
#: Codes of one number; ``L`` is an ``unsigned long`` of the guest's.
_WIDTHS = {
    "int": "i", "uint": "I", "ulong": "L", "u8": "B", "bool": "B", "seconds": "i",
    "user_ticks": "i", "milliseconds": "i", "long_milliseconds": "L", "static_key": "i",
}  # fmt: skip
#: These print one number, whatever the size of the variable.
_SINGLE = {"u8": 1, "bool": 1, "static_key": 4}


def values(guest: LinuxGuest, rows: list[Row], budget: Budget) -> list[bytes | None]:
    """What /proc/sys would show of each, without the line's end; ``None`` where that is not known.

    :param rows: parameters with ``handler``, ``data`` and ``size``.
    """
    kinds = {
        address: kind
        for kind, names in _HANDLERS.items()
        for name in names.split()
        for address in guest.symbols.all(name)
    }
    groups: dict[tuple[str, int], list[int]] = {}
    found: list[bytes | None] = [None] * len(rows)
    for number, row in enumerate(rows):
        kind = _kind(row, kinds)
        if not kind:
            continue
        size: int = _SINGLE.get(kind) or row["size"]
        if budget.late():
            break
        if not row["data"] or size <= 0:
            found[number] = b""
        elif kind == "bitmap":
            text = _bitmap(guest, row)
            found[number] = text if text is None or budget.keep(len(text)) else None
        elif size <= _MAX_SIZE:
            groups.setdefault((kind, size), []).append(number)
    length = tick(guest)
    for (kind, size), numbers in groups.items():
        if budget.late() or not budget.keep(size * len(numbers)):
            break
        faults: list[int] = []
        data = guest.kernel.gather([rows[number]["data"] for number in numbers], size, faults)
        bad = set(faults)
        for place, number in enumerate(numbers):
            if place in bad and kind != "string":
                guest.note("unreadable parameter", rows[number]["data"])
            elif place in bad:
                found[number] = _short_string(guest, rows[number])
            else:
                raw = data[place * size : (place + 1) * size]
                found[number] = _text(kind, raw, length, guest.types.pointer_size)
    return found


def _kind(row: Row, kinds: dict[int, str]) -> str:
    """What is printed of a parameter; ``""`` where that is not known, or nobody may read it."""
    kind = kinds.get(row["handler"] or 0, "")
    if row["size"] is None or not row["mode"] & 0o444:
        return ""
    if kind == "plain":
        return {1: "u8", 8: "ulong"}.get(row["size"], "int")
    if kind == "neighbour":  # three handlers in one: which unit is meant is in the name
        if row["name"].endswith(b"_ms"):
            return "milliseconds"
        return "int" if row["name"].endswith(b"retrans_time") else "seconds"
    return kind


def _text(kind: str, raw: bytes, length: int | None, pointer_size: int = 8) -> bytes | None:
    """The numbers of a variable, with spaces between; of a string what is before its end."""
    if kind == "string":
        return raw.split(b"\0", 1)[0]
    code = _WIDTHS[kind].replace("L", "Q" if pointer_size == 8 else "I")
    width = struct.calcsize(code)
    numbers = struct.unpack(f"<{len(raw) // width}{code}", raw[: len(raw) // width * width])
    if kind in ("bool", "static_key"):
        numbers = tuple(int(number > 0) for number in numbers)
    shown = [_scaled(kind, number, length) for number in numbers]
    return None if None in shown else " ".join(map(str, shown)).encode()


def _scaled(kind: str, number: int, length: int | None) -> int | None:
    """Ticks in the unit that is printed."""
    if kind not in ("seconds", "user_ticks", "milliseconds", "long_milliseconds"):
        return number
    if length is None:
        return None
    frequency = _NANOSECONDS // length
    sign, ticks = (-1 if number < 0 else 1), abs(number)
    if kind == "seconds":
        return sign * (ticks // frequency)
    if kind == "user_ticks":
        return sign * (ticks * length // (_NANOSECONDS // _USER_HZ))
    return sign * (ticks * 1000 // frequency)


def _short_string(guest: LinuxGuest, row: Row) -> bytes | None:
    """A string in a variable that is smaller than its entry says, at the end of memory."""
    try:
        return guest.kernel.string(row["data"], row["size"])
    except FaultError as error:
        guest.note("unreadable parameter", error.address)
        return None


def _bitmap(guest: LinuxGuest, row: Row) -> bytes | None:
    """Ranges of the bits that are set; the variable is a pointer to them."""
    bits = row["size"]
    if bits > _MAX_BITS:
        return None
    try:
        pointer = guest.kernel.read_pointer(row["data"])
        raw = guest.kernel.read(pointer, -(-bits // 64) * 8) if pointer else b""
    except FaultError as error:
        guest.note("unreadable parameter", error.address)
        return None
    if not raw.strip(b"\0"):
        return b""
    number = int.from_bytes(raw, "little") & ((1 << bits) - 1)
    digits = f"{number:b}"[::-1]
    ranges, start = [], digits.find("1")
    while start >= 0:
        end = digits.find("0", start)
        end = len(digits) if end < 0 else end
        ranges.append(b"%d" % start if end == start + 1 else b"%d-%d" % (start, end - 1))
        start = digits.find("1", end)
    return b",".join(ranges)
