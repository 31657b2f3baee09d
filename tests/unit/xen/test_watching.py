"""What the process that watches says, and what becomes of it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from unittest import mock

import pytest
from virtintrospect_xen.target import XenTarget
from virtintrospect_xen.watching import _event, _pass_on

from tests.unit.xen.fake import FakeDomain, FakeXen, pv_domain
from virtintrospect.driver import Access, Capability
from virtintrospect.errors import (
    MemoryAccessError,
    TargetGoneError,
    UnsupportedError,
    UsageError,
)
from virtintrospect.model import Event, EventKind, RegisterWrite


def test_lines() -> None:
    event = Event(EventKind.REGISTER, 1, 2.5, 3, 4, register="cr3", previous=5, value=(1 << 64) - 1)
    assert _event(json.dumps(asdict(event)).encode()) == event
    assert _event(b"[]") is None
    with pytest.raises(UnsupportedError, match="not of this guest") as caught:
        _event(b'["UnsupportedError", "not of this guest", "of another"]')
    assert caught.value.hint == "of another"
    with pytest.raises(MemoryAccessError, match="no memory at"):
        _event(b'["FaultError", "no memory at physical address 0x1000 (16 bytes)", ""]')


def test_a_guest_that_ends_rings_no_bell() -> None:
    """Who watches asks whether it is still there."""
    target = mock.Mock()
    target.check.side_effect = TargetGoneError("domain 7 has ended")
    (quiet, other), (wanted, end) = os.pipe(), os.pipe()
    with (
        os.fdopen(wanted) as stdin,
        os.fdopen(end, "wb"),
        os.fdopen(other, "wb"),
        os.fdopen(quiet) as watch,
        mock.patch("sys.stdin", stdin),
        pytest.raises(TargetGoneError),
    ):
        _pass_on(target, watch)


def test_who_may_watch() -> None:
    hvm = FakeDomain({frame: bytes(4096) for frame in range(512)})
    pv, m2p = pv_domain(10, 0x50000)
    with FakeXen({7: hvm, 8: pv}).installed() as xen:
        xen.m2p = m2p
        with XenTarget(7, Access()) as target:
            assert Capability.EVENTS not in target.capabilities()
            with pytest.raises(UsageError, match="may not be disturbed"):
                target.watch(RegisterWrite())
        with XenTarget(7, Access(write=True)) as target:
            assert Capability.EVENTS in target.capabilities()
        with XenTarget(8, Access(write=True)) as target:
            assert Capability.EVENTS not in target.capabilities()
            with pytest.raises(UnsupportedError, match="cannot report events"):
                target.watch(RegisterWrite())
