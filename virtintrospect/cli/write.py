"""Changing a guest's memory, on request and never otherwise."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from virtintrospect.cli.options import Settings, common, number, pass_settings, target_argument
from virtintrospect.cli.primitives import address_of, space_of
from virtintrospect.errors import NoSuchTargetError, UsageError

if TYPE_CHECKING:
    from virtintrospect.session import Session

_LINE = 16
#: Most bytes of one command: each line of them is shown.
_MOST = 1 << 20
_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def _number_options(function: Any) -> Any:
    for name, size in reversed(_SIZES.items()):
        function = click.option(
            f"--{name}", metavar="NUMBER", help=f"Write a little-endian number of {size * 8} bits."
        )(function)
    return function


@click.command("write")
@target_argument
@click.argument("address")
@click.argument("data", required=False, metavar="[HEX]")
@click.option("--file", "path", type=click.Path(), metavar="PATH", help="Write what is in a file.")
@click.option("--text", metavar="TEXT", help="Write a text, as UTF-8 and without a NUL behind it.")
@_number_options
@click.option("--pid", type=int, metavar="PID", help="ADDRESS is one of this process.")
@click.option("--physical", is_flag=True, help="ADDRESS is guest-physical.")
@click.option("--force", is_flag=True, help="Also where the guest's tables map it read-only.")
@click.option("--pause", is_flag=True, help="Let the guest stand still meanwhile.")
@common
@pass_settings
def write(
    settings: Settings,
    /,
    target: str,
    address: str,
    data: str | None,
    *,
    path: str | None,
    text: str | None,
    pid: int | None,
    physical: bool,
    force: bool,
    pause: bool,
    **numbers: str | None,
) -> None:
    """Change memory of TARGET at an address or a symbol; needs --allow-write.

    What is written is read back; nothing is written where a part of the range cannot be. Shown
    is what was there before, and what is there now.

    \b
    virt-introspect write web01 sysctl_sched_child_runs_first --u32 1 --allow-write
    virt-introspect write web01 0x7ffd1c2a3000 "68 65 6c 6c 6f" --pid 812 --allow-write
    virt-introspect write web01 0x1f4000 --file page.bin --physical --pause --allow-write
    virt-introspect write ./web01.core linux_banner --text Linux --force --allow-write --in-place
    """
    from virtintrospect.driver import Capability
    from virtintrospect.insight.tables import WRITE

    what = _bytes(data, path, text, numbers)
    if physical and pid is not None:
        raise UsageError("--physical and --pid exclude each other")
    with settings.open(target, WRITE) as session:
        session.target.require(Capability.WRITE)
        if pause:
            session.target.require(Capability.PAUSE)
        where, before = _write(
            session, address, what, pid=pid, physical=physical, force=force, pause=pause
        )
        settings.show(WRITE, _lines(where, before, what))


def _write(
    session: Session,
    address: str,
    data: bytes,
    *,
    pid: int | None,
    physical: bool,
    force: bool,
    pause: bool,
) -> tuple[int, bytes]:
    """Write, and give the address and what was there."""
    if not physical:
        space, where = space_of(session.guest, pid), address_of(session.guest, address)
    else:
        where = number(address, "physical address")
    with session.paused() if pause else contextlib.nullcontext() as stood:
        if physical:
            before = session.memory.read(where, len(data))
            session.memory.write(where, data)
        else:
            before = space.read(where, len(data))
            space.write(where, data, force=force)
    if stood is not None:
        click.echo(f"the guest stood still for {stood.seconds * 1000:.1f} ms", err=True)
    return where, before


def _bytes(
    data: str | None, path: str | None, text: str | None, numbers: dict[str, str | None]
) -> bytes:
    """What is to be written, from the one way in which it was given."""
    given = {"HEX": data, "--file": path, "--text": text}
    given |= {f"--{name}": value for name, value in numbers.items()}
    named = [(how, value) for how, value in given.items() if value is not None]
    if len(named) != 1:
        raise UsageError(
            "what is to be written must be given once: " + ", ".join(given),
            hint="for example: --u32 1, or 'de ad be ef'",
        )
    how, value = named[0]
    if how == "--file":
        found = _content(value)
    elif how == "--text":
        found = value.encode("utf-8", "surrogateescape")
    elif how == "HEX":
        found = _hex(value)
    else:
        found = _number(value, _SIZES[how[2:]])
    if not found:
        raise UsageError(f"{how}: there is nothing to write")
    if len(found) > _MOST:
        raise UsageError(f"{how}: one command writes at most {_MOST} bytes", hint="split it")
    return found


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise UsageError(
            f"{text!r} are no bytes", hint="two hexadecimal digits each: 'de ad be ef'"
        ) from error


def _number(text: str, size: int) -> bytes:
    negative = text.startswith("-")
    value = number(text.removeprefix("-"), "number")
    try:
        return (-value if negative else value).to_bytes(size, "little", signed=negative)
    except OverflowError as error:
        raise UsageError(f"{text} does not fit into {size * 8} bits") from error


def _content(path: str) -> bytes:
    try:
        # Without waiting for the other end of a pipe; and no more than may be written.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(_MOST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NoSuchTargetError(f"{path}: {reason}") from error


def _lines(address: int, before: bytes, after: bytes) -> Iterator[dict[str, Any]]:
    for at in range(0, len(after), _LINE):
        yield {
            "address": address + at, "before": before[at : at + _LINE],
            "data": after[at : at + _LINE],
        }  # fmt: skip
