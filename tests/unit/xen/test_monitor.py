"""What the monitor's calls say to Xen, by the numbers and structures of domctl.h (4.17)."""

from __future__ import annotations

import struct
from unittest import mock

from virtintrospect_xen.monitor import Monitor

_DOMID = 7
#: XEN_DOMCTL_debug_op, _vm_event_op, _monitor_op.
_DEBUG_OP, _VM_EVENT_OP, _MONITOR_OP = 54, 56, 77


def _said(xen: mock.Mock) -> list[tuple[int, int, bytes]]:
    return [call.args[:3] for call in xen.domain_call.call_args_list]


def test_what_is_reported() -> None:
    xen = mock.Mock()
    xen.domain_call.return_value = struct.pack("<IIII", 0, 0b1001, 5, 0)
    monitor = Monitor(xen, _DOMID)
    assert monitor.capabilities() == 0b1001
    assert monitor.enable() == 5
    monitor.event(3, on=True)
    monitor.event(2, on=False)
    monitor.register(1, on=True)
    monitor.disable()
    assert _said(xen) == [
        (_MONITOR_OP, _DOMID, struct.pack("<II", 2, 0)),
        (_VM_EVENT_OP, _DOMID, struct.pack("<III", 0, 2, 0)),
        (_MONITOR_OP, _DOMID, struct.pack("<II", 0, 3)),
        (_MONITOR_OP, _DOMID, struct.pack("<II", 1, 2)),
        # struct mov_to_cr: its index, then whether the vCPU waits, whether changes only; a mask.
        (_MONITOR_OP, _DOMID, struct.pack("<IIBBBxxxxxQ", 0, 0, 1, 0, 0, 0)),
        (_VM_EVENT_OP, _DOMID, struct.pack("<III", 1, 2, 0)),
    ]


def test_steps() -> None:
    """XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON and _OFF, then the vCPU."""
    xen = mock.Mock()
    monitor = Monitor(xen, _DOMID)
    monitor.step(3, on=True)
    monitor.step(3, on=False)
    assert _said(xen) == [
        (_DEBUG_OP, _DOMID, struct.pack("<II", 1, 3)),
        (_DEBUG_OP, _DOMID, struct.pack("<II", 0, 3)),
    ]
