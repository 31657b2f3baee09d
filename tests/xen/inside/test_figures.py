"""What the driver costs, measured beside what it could cost at best, in the same minute."""

from __future__ import annotations

import ctypes
import time

from virtintrospect_xen.target import XenTarget
from virtintrospect_xen.window import Mapper

from tests.xen.lab.guest import XenGuest
from virtintrospect.session import Session

_PAGE, _BATCH = 4096, 256
#: Frames in the middle of a guest's memory: 64 MiB.
_FRAMES = range(16384, 32768)


def _bare(target: XenTarget, mapper: Mapper) -> float:
    """MiB/s of a loop that maps, copies and unmaps, and does nothing else."""
    frames = list(target.memory.machine(_FRAMES))
    start = time.perf_counter()
    for first in range(0, len(frames), _BATCH):
        address, _ = mapper.map(frames[first : first + _BATCH])
        ctypes.string_at(address, _BATCH * _PAGE)
        Mapper.unmap(address, _BATCH)
    return (len(frames) * _PAGE >> 20) / (time.perf_counter() - start)


def _ours(target: XenTarget) -> float:
    memory = target.memory
    memory.forget()
    start = time.perf_counter()
    for first in range(_FRAMES.start, _FRAMES.stop, _BATCH):
        memory.read(first * _PAGE, _BATCH * _PAGE)
    return (len(_FRAMES) * _PAGE >> 20) / (time.perf_counter() - start)


def test_a_scan_is_as_fast_as_mapping_allows(session: Session, guest: XenGuest) -> None:
    target = session.target
    assert isinstance(target, XenTarget)
    mapper = Mapper(guest.domid)
    bare, ours = zip(*((_bare(target, mapper), _ours(target)) for _ in range(5)), strict=True)
    mapper.close()
    ratio = max(ours) / max(bare)
    print(f"{guest.config.id}: scan {max(ours):.0f} MiB/s, bare {max(bare):.0f}: {ratio:.2f}")
    assert ratio >= 0.7


def test_a_list_again_is_fast(session: Session) -> None:
    """The second list costs no call for mapping."""
    session.processes()
    target = session.target
    assert isinstance(target, XenTarget)
    calls = 0
    original = target.memory._window._mapper.map

    def counted(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        return original(*arguments, **options)  # type: ignore[arg-type]

    target.memory._window._mapper.map = counted  # type: ignore[method-assign,assignment]
    try:
        start = time.perf_counter()
        count = len(session.processes())
        took = time.perf_counter() - start
    finally:
        target.memory._window._mapper.map = original  # type: ignore[method-assign]
    print(f"{count} processes again in {took * 1000:.0f} ms, {calls} calls for mapping")
    assert calls <= 10
