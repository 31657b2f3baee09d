"""The public interface of the library: what it has, and that only its own errors come out of it."""

from __future__ import annotations

import contextlib
import inspect
import os
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import virtintrospect
from tests.unit.built import BASE, BuiltKernel
from virtintrospect import errors, host
from virtintrospect.driver import Target
from virtintrospect.errors import (
    AccessDeniedError,
    FaultError,
    ImageFormatError,
    MemoryAccessError,
    NoSuchTargetError,
    TargetGoneError,
    UsageError,
    VirtIntrospectError,
)
from virtintrospect.guests.base import Guest
from virtintrospect.insight.tables import COMMANDS, PS
from virtintrospect.memory import PhysicalMemory
from virtintrospect.session import Session

ERRORS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, VirtIntrospectError)
}


def test_names() -> None:
    assert set(virtintrospect.__all__) == ERRORS | {
        "Access", "Domain", "Guest", "Session", "__version__", "domains", "open",
    }  # fmt: skip
    assert list(virtintrospect.__all__) == sorted(virtintrospect.__all__)
    for name in virtintrospect.__all__:
        assert getattr(virtintrospect, name) is not None
    with pytest.raises(AttributeError):
        _ = virtintrospect.nothing


def test_errors_are_one_tree_with_exit_codes() -> None:
    for name in ERRORS:
        error: type[VirtIntrospectError] = getattr(virtintrospect, name)
        assert name in (errors.__doc__ or "")
        assert 1 <= error.exit_code <= 5


def test_session_has_all_that_a_guest_has() -> None:
    """Each public method of Guest is one of Session, with the same parameters."""
    for name, method in inspect.getmembers(Guest, inspect.isfunction):
        if name.startswith("_") or name == "is_current":
            continue
        ours = getattr(Session, name)
        assert inspect.signature(ours) == inspect.signature(method), name
        assert ours.__doc__ == method.__doc__
    for table in (PS, *COMMANDS):
        assert hasattr(Session, table.source)


def test_everything_public_has_hints_and_words() -> None:
    for owner in (virtintrospect.Session, virtintrospect.Guest, virtintrospect.Domain):
        for name, value in inspect.getmembers(owner, inspect.isfunction):
            if name.startswith("_"):
                continue
            assert value.__doc__, f"{owner.__name__}.{name}"
            signature = inspect.signature(value)
            assert signature.return_annotation is not inspect.Signature.empty, name
            for parameter in list(signature.parameters.values())[1:]:
                assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)
    assert (Path(virtintrospect.__file__).parent / "py.typed").exists()
    assert typing.get_overloads(virtintrospect.open)


# -- only our own errors --------------------------------------------------------------------


class BuiltTarget(Target):
    """A hand-built guest's memory; closed, it says so as a real one does."""

    live = False

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    @property
    def memory(self) -> PhysicalMemory:
        return self._memory

    def close(self) -> None:
        self._memory.close()


@pytest.fixture
def session() -> Iterator[Session]:
    """A kernel with symbols, and types of nothing but a list: every table misses something."""
    kernel = BuiltKernel({"list_head": "list_head *next; list_head *prev"})
    with Session(BuiltTarget(kernel.memory)) as session:
        session._guest = kernel.guest()
        yield session


ADDRESSES = (-1, 0, 7, BASE - 1, BASE, 1 << 47, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 80)
CALLS: dict[str, Callable[[Session, int], Any]] = {
    "physical": lambda s, at: s.memory.read(at, 8),
    "physical gather": lambda s, at: s.memory.gather([at, 0], 8),
    "physical view": lambda s, at: s.memory.view(at, 8),
    "physical u64": lambda s, at: s.memory.read_u64(at),
    "read": lambda s, at: s.kernel.read(at, 8),
    "physical write": lambda s, at: s.memory.write(at, b"x"),
    "kernel write": lambda s, at: s.kernel.write(at, b"x"),
    "write number": lambda s, at: s.kernel.write_integer(at, at),
    "write": lambda s, at: s.write(at, b"x"),
    "write to a process": lambda s, at: s.write(BASE, b"x", pid=at),
    "size": lambda s, at: s.kernel.read(BASE, at),
    "gather": lambda s, at: s.kernel.gather([BASE, at], 8),
    "u64": lambda s, at: s.kernel.read_u64(at),
    "string": lambda s, at: s.kernel.string(at),
    "strings": lambda s, at: s.kernel.strings([at]),
    "available": lambda s, at: s.kernel.read_available(at, 8),
    "translate": lambda s, at: s.kernel.translate(at),
    "translate many": lambda s, at: s.kernel.translate_many([at, BASE]),
    "walk": lambda s, at: s.kernel.walk(at),
    "symbol": lambda s, at: s.symbols.lookup(at),
    "layout": lambda s, at: s.layout("list_head", ["next"]).lists(s.kernel, [at, BASE]),
    "arrays": lambda s, at: s.layout("list_head", ["next"]).columns(s.kernel, [at, BASE]),
    "record": lambda s, at: s.layout("list_head", ["next"]).read(s.kernel, at),
    "entries": lambda s, at: s.entries(at, "list_head", "next"),
    "log": lambda s, at: s.dmesg(at),
    "maps": lambda s, at: s.maps(at),
    "files": lambda s, at: s.table("files", pid=at),
    "space": lambda s, at: s.process_space(at),
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("call", CALLS)
def test_no_number_raises_a_foreign_error(session: Session, call: str, address: int) -> None:
    with contextlib.suppress(VirtIntrospectError):
        CALLS[call](session, address)


NAMES = ("", "nope", "a\0b", "\udc80", "é" * 300, "list_head.next", "*[", "struct ")
BY_NAME: dict[str, Callable[[Session, str], Any]] = {
    "symbol": lambda s, name: s.symbols.address(name),
    "search": lambda s, name: list(s.symbols.search(name)),
    "type": lambda s, name: s.types.sizeof(name),
    "member": lambda s, name: s.types.offsetof("list_head", name),
    "describe": lambda s, name: s.types.describe(name),
    "names": lambda s, name: list(s.types.names(name)),
    "enumerators": lambda s, name: s.types.enumerators(name),
    "layout": lambda s, name: s.layout("list_head", [name]),
    "entries": lambda s, name: s.entries(name, "list_head", "next"),
    "module": lambda s, name: s.module_types(name),
    "table": lambda s, name: s.table(name),
    "argument": lambda s, name: s.table("dmesg", **{name: 1}),
    "columns": lambda s, name: s.columns("ps", [name]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", BY_NAME)
def test_no_name_raises_a_foreign_error(session: Session, call: str, name: str) -> None:
    with contextlib.suppress(VirtIntrospectError):
        BY_NAME[call](session, name)


def test_no_table_raises_a_foreign_error(session: Session) -> None:
    """On a kernel that has none of the types."""
    for name in session.tables:
        if name == "memory":  # every line of it may be missing
            assert session.table(name)
            continue
        with pytest.raises(VirtIntrospectError):
            session.table(name)
    with pytest.raises(UsageError, match="pid"):
        session.table("maps")


def test_a_closed_session_says_so(session: Session) -> None:
    session.close()
    session.close()
    for call in (session.info, session.processes, lambda: session.guest, lambda: session.kernel):
        with pytest.raises(UsageError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("./no/such/file", NoSuchTargetError),
        ("/", MemoryAccessError),
        ("/dev/null", ImageFormatError),
        ("./a\0b", NoSuchTargetError),
        ("./\udc80", NoSuchTargetError),
        ("/" + "x" * 5000, NoSuchTargetError),
        ("file://elsewhere/x", UsageError),
        ("file:///a%00b", NoSuchTargetError),
        ("http://[", UsageError),
        ("file://[", UsageError),
        ("qmp:/no/such", NoSuchTargetError),
    ],
)
def test_paths(name: str, error: type[VirtIntrospectError]) -> None:
    with pytest.raises(error):
        virtintrospect.open(name)


HEADS = (
    b"", b"\0", b"\x7fELF", b"\x7fELF\2\1\1" + bytes(9), b"KDUMP   ", b"QEVM\0\0\0\3",
    b"LibvirtQemudSave", b"EMiL\1\0\0\0", b"AVML\2\0\0\0", b"makedumpfile\0\0\0\0",
)  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fill", [b"", bytes(8192), b"\xff" * 8192, b"\x41\x01" * 4096])
def test_images_of_rubbish(tmp_path: Path, head: bytes, fill: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(head + fill)
    with pytest.raises(VirtIntrospectError), virtintrospect.open(str(path)) as session:
        session.processes()


def test_an_image_that_is_cut_or_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    with virtintrospect.open(str(path)) as session:
        os.truncate(path, 4096)
        with pytest.raises(VirtIntrospectError):
            session.memory.read(0x8000, 8)
    if os.geteuid():
        path.chmod(0)
        with pytest.raises(AccessDeniedError):
            virtintrospect.open(str(path))


class LibvirtError(Exception):
    def get_error_code(self) -> int:
        return 38  # VIR_ERR_SYSTEM_ERROR


class Failing:
    """A libvirt of which one call fails, and what comes before it does not."""

    VIR_ERR_NO_DOMAIN = 42
    libvirtError = LibvirtError  # noqa: N815 (libvirt's own name)

    def __init__(self, call: str) -> None:
        self.call = call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("VIR_"):
            return hash(name) % 1000 + 1000

        def do(*_: object) -> Any:
            if name == self.call:
                raise LibvirtError("internal error")
            return {
                "getURI": "qemu:///system", "getType": "QEMU", "listAllDomains": [self],
                "ID": 1, "name": "web01", "UUIDString": "", "state": [1, 0], "XMLDesc": "<x/>",
            }.get(name, self)  # fmt: skip

        return do


@pytest.mark.parametrize(
    "call",
    ["openReadOnly", "getURI", "getType", "listAllDomains", "lookupByName", "lookupByID", "close",
     "lookupByUUIDString", "ID", "name", "UUIDString", "state", "XMLDesc"],
)  # fmt: skip
def test_no_call_of_libvirt_raises_its_own_error(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(host, "load_libvirt", lambda: Failing(call))
    for target in ("web01", "1", "11111111-2222-3333-4444-555555555555"):
        with pytest.raises(VirtIntrospectError):
            virtintrospect.open("qemu:///system", target)
    if not call.startswith("lookup"):
        with pytest.raises(VirtIntrospectError):
            virtintrospect.domains("qemu:///system")


@pytest.mark.parametrize("target", ["a\0b", "\udc80"])
def test_names_that_libvirt_cannot_take(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    class Strict(Failing):
        def lookupByName(self, name: str) -> Any:  # noqa: N802 (libvirt's own name)
            if "\0" in name:
                raise ValueError("embedded null character")
            return name.encode()

    monkeypatch.setattr(host, "load_libvirt", lambda: Strict(""))
    with pytest.raises(NoSuchTargetError):
        virtintrospect.open("qemu:///system", target)


def test_open_takes_one_connection(session: Session) -> None:
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
        (("qemu:///system", "web01"), {"uri": "qemu:///session"}),
        ((session, "web01"), {}),
    )
    for arguments, keywords in calls:
        with pytest.raises(UsageError):
            virtintrospect.open(*arguments, **keywords)


def test_errors_carry_what_programs_want() -> None:
    assert FaultError(0x1000, 8).address == 0x1000
    assert TargetGoneError("gone", hint="x").hint == "x"
