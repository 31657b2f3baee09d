"""Symbols, types, addresses and raw memory: the primitives of introspection, for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import click

from virtintrospect.cli.imports import TargetOrCommand, forget, import_, imported
from virtintrospect.cli.options import Settings, common, number, pass_settings, target_argument
from virtintrospect.errors import SymbolNotFoundError, TypeNotFoundError, UsageError

if TYPE_CHECKING:
    from virtintrospect.guests.base import Guest
    from virtintrospect.memory import PhysicalMemory
    from virtintrospect.space import AddressSpace
    from virtintrospect.symbols.types import Types

_MOST_NAMES = 100_000
_LINE = 16
_WILDCARDS = set("*?[")


@click.command("symbols")
@target_argument
@click.argument("name")
@common
@pass_settings
def _find_symbols(settings: Settings, target: str, name: str) -> None:
    """Find kernel symbols of TARGET by NAME, by shell pattern, or by address.

    For kernels that carry no symbols or types of their own, its subcommands bring them. A domain
    that is called like one of them is named by its id or UUID.

    \b
    virt-introspect symbols web01 init_task
    virt-introspect symbols web01 'tcp_*'
    virt-introspect symbols web01 0xffffffff81e1b100
    """
    from virtintrospect.insight.tables import SYMBOLS

    with settings.open(target, SYMBOLS) as session:
        settings.show(SYMBOLS, list(_symbol_rows(session.guest, name)))


symbols = TargetOrCommand("symbols", default=_find_symbols, help=_find_symbols.help)
common(symbols)
for command in (import_, imported, forget):
    symbols.add_command(command)


def _symbol_rows(guest: Guest, name: str) -> Iterator[dict[str, Any]]:
    table = guest.symbols
    if name[:1].isdigit():
        address = number(name, "address")
        found = table.lookup(address)
        if found is None:
            raise SymbolNotFoundError(f"{address:#x}", hint="no symbol lies at or below it")
        yield {
            "name": found[0], "offset": found[1],
            "address": address - found[1], "type": table.type_of(found[0]),
        }  # fmt: skip
        return
    if not _WILDCARDS & set(name):
        table.address(name)  # raises, and says what is similar
    pattern = name if _WILDCARDS & set(name) else _literal(name)
    for symbol in table.search(pattern, _MOST_NAMES):
        yield {"name": symbol.name, "address": symbol.address, "type": symbol.type}


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in _WILDCARDS else c for c in name)


@click.command("types")
@target_argument
@click.argument("name")
@click.option("--module", metavar="MODULE", help="Look in the types of this kernel module, too.")
@common
@pass_settings
def types(settings: Settings, target: str, name: str, module: str | None) -> None:
    """Show the members of a C type of TARGET's kernel, or the types that match a pattern.

    \b
    virt-introspect types web01 task_struct
    virt-introspect types web01 'enum pid_type'
    virt-introspect types web01 'struct tcp_*'
    virt-introspect types web01 net_bridge --module bridge
    """
    from virtintrospect.insight.tables import TYPES

    with settings.open(target, TYPES) as session:
        guest = session.guest
        table = guest.types if module is None else guest.module_types(module)
        settings.show(TYPES, list(_type_rows(table, name)))


def _type_rows(table: Types, name: str) -> Iterator[dict[str, Any]]:
    if _WILDCARDS & set(name):
        names = sorted(set(table.names(name)))
        if not names:
            raise TypeNotFoundError(name, hint="no type matches")
        for found in names[:_MOST_NAMES]:
            kind, _, bare = found.rpartition(" ")
            yield {"name": bare} | ({"kind": kind} if kind else {})
        return
    described = table.describe(name)
    head: dict[str, Any] = {
        "name": described.name, "kind": str(described.kind), "size": described.size,
    }  # fmt: skip
    yield head | ({"type": described.target} if described.target else {})
    for member in described.members:
        bits = (
            {"bit_offset": member.bit_offset, "bit_size": member.bit_size}
            if member.bit_size
            else {}
        )
        yield {
            "name": member.name or "(anonymous)", "kind": "member", "offset": member.offset,
            "size": member.size, "type": member.type, **bits,
        }  # fmt: skip
    for enumerator, value in described.enumerators:
        yield {"name": enumerator, "kind": "enumerator", "value": value}


@click.command("translate")
@target_argument
@click.argument("vaddr")
@click.option("--pid", type=int, metavar="PID", help="In the address space of this process.")
@common
@pass_settings
def translate(settings: Settings, target: str, vaddr: str, pid: int | None) -> None:
    """Walk TARGET's page tables for a virtual address or a symbol.

    \b
    virt-introspect translate web01 init_task
    virt-introspect translate web01 0x7ffd1c2a3000 --pid 812
    """
    from virtintrospect.insight.tables import TRANSLATE

    with settings.open(target, TRANSLATE) as session:
        guest = session.guest
        walk = space_of(guest, pid).walk(address_of(guest, vaddr))
        row: dict[str, Any] = {"vaddr": walk.vaddr, "present": walk.present}
        if walk.paddr is not None:
            row |= {
                "paddr": walk.paddr, "page_size": walk.page_size, "writable": walk.writable,
                "user": walk.user, "executable": walk.executable,
            }  # fmt: skip
        row |= {step.level.lower(): step.entry for step in walk.steps}
        settings.show(TRANSLATE, [row], single=True)


@click.command("read")
@target_argument
@click.argument("address")
@click.option("-n", "--size", default="256", metavar="BYTES", help="How much; 256 by default.")
@click.option("--pid", type=int, metavar="PID", help="ADDRESS is one of this process.")
@click.option("--physical", is_flag=True, help="ADDRESS is guest-physical.")
@click.option("--raw", is_flag=True, help="Write the bytes themselves to standard output.")
@common
@pass_settings
def read(
    settings: Settings,
    target: str,
    address: str,
    size: str,
    *,
    pid: int | None,
    physical: bool,
    raw: bool,
) -> None:
    """Read memory of TARGET at an address or a symbol.

    \b
    virt-introspect read web01 linux_banner
    virt-introspect read web01 0x7ffd1c2a3000 --pid 812 -n 4096
    virt-introspect read web01 0x0 --physical -n 1048576 --raw > first-mib.bin
    """
    from virtintrospect.insight.tables import READ
    from virtintrospect.memory.base import MAX_READ

    length = number(size, "size")
    if length > MAX_READ:
        raise UsageError(f"one read gives at most {MAX_READ} bytes", hint="`dump` takes more")
    if physical and pid is not None:
        raise UsageError("--physical and --pid exclude each other")
    if raw:
        settings.not_in_batch("--raw")
    if raw and sys.stdout.isatty():
        raise UsageError("raw guest memory does not go to a terminal", hint="redirect it: > FILE")
    with settings.open(target, READ) as session:
        if physical:
            where = number(address, "physical address")
            space: PhysicalMemory | AddressSpace = session.target.memory
        else:
            guest = session.guest
            where = address_of(guest, address)
            space = space_of(guest, pid)
        data = space.read(where, length)
        if raw:
            sys.stdout.buffer.write(data)
            return
        settings.show(READ, _hex_lines(where, data))


@click.command("registers")
@target_argument
@click.option("--vcpu", type=int, metavar="N", help="Of this vCPU only; the first one is 0.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a register of the vCPU first; may be given more than once.",
)
@common
@pass_settings
def registers(settings: Settings, target: str, vcpu: int | None, changes: tuple[str, ...]) -> None:
    """Show the vCPU registers of TARGET, or set some.

    ELF cores with QEMU's notes have them. Those of a running guest need QEMU's monitor, and so
    --allow-taint; to set them takes --transport gdbstub and --allow-write, too.

    \b
    virt-introspect registers ./crashed.core --vcpu 1
    virt-introspect registers web01 --allow-taint
    virt-introspect registers web01 --vcpu 0 --transport gdbstub --allow-taint
    virt-introspect registers web01 --vcpu 0 --set rax=0 --transport gdbstub \
        --allow-taint --allow-write
    """
    from virtintrospect.driver import Capability, SupportsRegisters, SupportsSetRegisters
    from virtintrospect.insight.tables import REGISTERS

    values = dict(_change(text) for text in changes)
    if values and vcpu is None:
        raise UsageError("--set needs --vcpu", hint="registers are those of one vCPU")
    with settings.open(target, REGISTERS) as session:
        session.target.require(Capability.SET_REGISTERS if values else Capability.REGISTERS)
        if values and vcpu is not None:
            cast("SupportsSetRegisters", session.target).set_registers(vcpu, values)
        source = cast("SupportsRegisters", session.target)
        rows = [
            {"vcpu": each, "register": name, "value": value}
            for each in (range(source.vcpus) if vcpu is None else [vcpu])
            for name, value in source.registers(each).items()
        ]
        settings.show(REGISTERS, rows)


def _change(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"{text!r} sets no register", hint="write NAME=VALUE: rax=0x1")
    return name, number(value, "value")


def _hex_lines(address: int, data: bytes) -> Iterator[dict[str, Any]]:
    for offset in range(0, len(data), _LINE):
        line = data[offset : offset + _LINE]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        yield {"address": address + offset, "data": line, "text": text}


def space_of(guest: Guest, pid: int | None) -> AddressSpace:
    """The address space of a process; the kernel's where none is named."""
    return guest.kernel if pid is None else guest.process_space(pid)


def address_of(guest: Guest, text: str) -> int:
    """An address: a number, a symbol, or ``symbol+offset``."""
    if text[:1].isdigit():
        return number(text, "address")
    name, plus, offset = text.partition("+")
    return guest.symbols.address(name) + (number(offset, "offset") if plus else 0)
