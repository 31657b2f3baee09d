"""A real guest whose kernel's own BTF is not looked at, with the same types brought by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtintrospect.errors import MissingTypesError
from virtintrospect.guests.linux import identify
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session, open_session
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.store import Store

from .lab.guest import Guest


def linux_of(session: Session) -> LinuxGuest:
    assert isinstance(session.guest, LinuxGuest)
    return session.guest


def test_brought_types_serve_a_kernel_without_any(
    one_guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(one_guest.name) as session:
        own = linux_of(session)
        assert isinstance(own.types, Btf)
        blob, build_id = bytes(own.types.sections.raw), own.build_id
        modules, mounts = own.modules(), own.mounts()
    monkeypatch.setattr(identify._Identification, "_btf", lambda *_: None)
    store = Store(tmp_path)
    with (
        open_session(one_guest.name, store=store) as session,
        pytest.raises(MissingTypesError) as caught,
    ):
        session.recognise()
    assert build_id.hex() in caught.value.hint
    store.add_types(build_id, blob, pointer_size=8)
    with open_session(one_guest.name, store=store) as session:
        guest = linux_of(session)
        assert guest.types is not own.types
        assert guest.modules() == modules
        assert guest.mounts() == mounts
        assert {1, 2} <= {row.pid for row in guest.processes()}
