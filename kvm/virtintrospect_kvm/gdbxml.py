"""Which registers a gdb stub has: its target description.

Source: "Target Descriptions" of GDB's manual. ``target.xml`` names the architecture and
includes one file a *feature*; a register has a number, its own or one more than the register
before it, over all features in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple
from xml.etree import ElementTree

from virtintrospect.errors import MemoryAccessError

#: Bytes of a description; QEMU's largest, of Arm with its system registers, has some 100 KiB.
MOST = 1 << 20
#: Files that one description includes, and registers.
_MOST_FILES, _MOST_REGISTERS = 64, 8192

#: QEMU uses the prefix ``xi`` of XInclude without declaring it.
_PREFIXED, _INCLUDE = b"<xi:include", "include"
#: How the bytes of a number are ordered, by the architecture's name before the colon.
_ORDERS = {
    "i386": "little", "aarch64": "little", "arm": "little", "riscv": "little",
    "s390": "big",
}  # fmt: skip
_MACHINES = {"i386:x86-64": "x86_64", "riscv:rv64": "riscv64", "s390:64-bit": "s390x"}
#: Names that the stub has for what others call otherwise.
_NAMES = {
    "i386:x86-64": {"eflags": "rflags", "k_gs_base": "kernel_gs_base"},
    "aarch64": {"cpsr": "pstate"},
}
_FLOATS = ("ieee", "float", "i387_ext", "bfloat16")


class Register(NamedTuple):
    """A register that holds a number of at most 64 bits."""

    name: str
    #: What the stub calls it.
    number: int
    #: Bytes.
    size: int


class Description(NamedTuple):
    """The registers of a machine, and how its numbers are written."""

    architecture: str
    #: The same as QEMU names it: ``x86_64``.
    machine: str
    #: ``little`` or ``big``.
    order: str
    registers: tuple[Register, ...]


def describe(fetch: Callable[[str], bytes]) -> Description:
    """The description of a stub.

    :param fetch: gives a file of the description by its name, ``target.xml`` first.
    :raises MemoryAccessError: it makes no sense, or is of an architecture that is not known.
    """
    root = _parse("target.xml", fetch("target.xml"))
    architecture = (root.findtext("architecture") or "").strip()
    order = _ORDERS.get(architecture.partition(":")[0])
    if order is None:
        raise MemoryAccessError(
            f"the gdb stub is one of architecture {architecture[:40]!r}: its numbers are not known",
            hint=f"known are: {', '.join(_ORDERS)}",
        )
    registers: list[Register] = []
    number = -1
    for element in _registers(root, fetch):
        number = _integer(element, "regnum", number + 1)
        size = _integer(element, "bitsize", 0)
        kind = element.get("type", "int")
        if 0 < size <= 64 and size % 8 == 0 and not kind.startswith(_FLOATS):
            name = element.get("name", "").lower()
            name = _NAMES.get(architecture, {}).get(name, name)
            registers.append(Register(name, number, size // 8))
    if not registers:
        raise MemoryAccessError("the gdb stub's description has no registers")
    machine = _MACHINES.get(architecture, architecture.partition(":")[0])
    return Description(architecture, machine, order, tuple(registers))


def _registers(
    root: ElementTree.Element, fetch: Callable[[str], bytes]
) -> Iterator[ElementTree.Element]:
    """Every register in order; files are included where they are named, one level deep."""
    files = count = 0
    for child in root:
        feature = child
        if child.tag == _INCLUDE:
            files += 1
            if files > _MOST_FILES:
                raise MemoryAccessError("the gdb stub's description includes files without end")
            name = child.get("href", "")
            feature = _parse(name, fetch(name))
        for element in feature.iter("reg"):
            count += 1
            if count > _MOST_REGISTERS:
                raise MemoryAccessError("the gdb stub describes registers without end")
            yield element


def _integer(element: ElementTree.Element, name: str, default: int) -> int:
    text = element.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 7):
        raise MemoryAccessError(f"the gdb stub describes a register whose {name} is {text[:20]!r}")
    return int(text)


def _parse(name: str, content: bytes) -> ElementTree.Element:
    # Entities are what makes XML dangerous to read; a description has none.
    if b"<!ENTITY" in content:
        raise MemoryAccessError(f"the gdb stub's {name[:40]!r} defines entities")
    try:
        return ElementTree.fromstring(content.replace(_PREFIXED, b"<include"))  # noqa: S314 (no entities, and at most MOST bytes)
    except ElementTree.ParseError as error:
        raise MemoryAccessError(
            f"the gdb stub's {name[:40]!r} cannot be parsed: {error}"
        ) from error
