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
#: More threads than QEMU has.
_MAX_THREADS = 1 << 14


def vcpu_times(process: QemuProcess) -> list[VcpuTime]:
    """The times of each vCPU's thread, by its number; none where the threads have no names.

    :raises TargetGoneError: the guest ended.
    """
    found = []
    for thread in process.threads()[:_MAX_THREADS]:
        with suppress(OSError, ValueError):  # it may just have ended
            name = _VCPU.fullmatch(process.read_file(f"task/{thread}/comm", 64))
            if name is not None:
                ran, waited, _ = process.read_file(f"task/{thread}/schedstat", 128).split()
                found.append(VcpuTime(int(name[1]), int(ran), int(waited)))
    return sorted(found)
