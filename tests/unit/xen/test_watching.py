"""What the process that watches says, and what becomes of it."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from virtintrospect_xen.target import XenTarget
from virtintrospect_xen.watching import _event

from tests.unit.xen.fake import FakeDomain, FakeXen, pv_domain
from virtintrospect.driver import Access, Capability
from virtintrospect.errors import UnsupportedError, UsageError
from virtintrospect.model import Event, EventKind, RegisterWrite


def test_lines() -> None:
    event = Event(EventKind.REGISTER, 1, 2.5, 3, 4, register="cr3", previous=5, value=(1 << 64) - 1)
    assert _event(json.dumps(asdict(event)).encode()) == event
    assert _event(b"[]") is None
    with pytest.raises(UnsupportedError, match="not of this guest") as caught:
        _event(b'["UnsupportedError", "not of this guest", "of another"]')
    assert caught.value.hint == "of another"


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
