"""How long vCPUs ran, and waited for a CPU of this host: ``/proc/PID/task/TID/schedstat``.

The host's own scheduler counts it (Documentation/scheduler/sched-stats.rst), so it is known of
guests whose kernel sees no steal time, and no guest can lie about it.
"""

from __future__ import annotations

import re
from contextlib import suppress

from virtintrospect.driver import VcpuTime
from virtintrospect_kvm.process import QemuProcess

#: What QEMU calls its threads where libvirt asks for names (``-name debug-threads=on``).
_VCPU = re.compile(rb"CPU ([0-9]{1,5})/(?:KVM|TCG)\n?")
_ALLOWED = re.compile(rb"^Cpus_allowed:\s*([0-9a-f,]+)$", re.MULTILINE)
#: More threads than QEMU has.
_MAX_THREADS = 1 << 14


def vcpu_threads(process: QemuProcess) -> dict[int, int]:
    """The vCPUs' thread ids, and the number of each; none where the threads have no names.

    :raises TargetGoneError: the guest ended.
    """
    found = {}
    for thread in process.threads()[:_MAX_THREADS]:
        with suppress(OSError):  # it may just have ended
            name = _VCPU.fullmatch(process.read_file(f"task/{thread}/comm", 64))
            if name is not None:
                found[thread] = int(name[1])
    return found


def vcpu_times(process: QemuProcess) -> list[VcpuTime]:
    """The times of each vCPU's thread, by its number; none where the threads have no names.

    :raises TargetGoneError: the guest ended.
    """
    found = []
    for thread, number in vcpu_threads(process).items():
        with suppress(OSError, ValueError):
            ran, waited, _ = process.read_file(f"task/{thread}/schedstat", 128).split()
            status = process.read_file(f"task/{thread}/status", 16384)
            mask = _ALLOWED.search(status)
            allowed = int(mask[1].replace(b",", b""), 16).bit_count() if mask else None
            found.append(VcpuTime(number, int(ran), int(waited), allowed))
    return sorted(found, key=lambda times: times.vcpu)
