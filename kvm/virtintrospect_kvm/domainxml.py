"""A domain's XML as the command line of its QEMU, as far as it says where memory is.

For guests of other hosts, and for users who cannot see the QEMU process.
"""

from __future__ import annotations

from xml.etree import ElementTree

from virtintrospect.domainxml import size_of
from virtintrospect.errors import MemoryAccessError

_COMMAND_LINE = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"
_VENDORS = {"AMD": "AuthenticAMD", "Intel": "GenuineIntel"}


def parse_xml(xml: str) -> ElementTree.Element:
    """The root of a domain's XML, an empty one where there is none.

    :raises MemoryAccessError: it cannot be parsed.
    """
    if not xml:
        return ElementTree.Element("domain")
    try:
        # libvirt itself has written this text; it carries no document type.
        return ElementTree.fromstring(xml)  # noqa: S314
    except ElementTree.ParseError as error:
        raise MemoryAccessError(f"the domain XML cannot be parsed: {error}") from error


#: QEMU's name of an architecture where libvirt has another.
_ARCHITECTURES = {"": "x86_64", "i686": "i386", "armv7l": "arm", "armv6l": "arm"}


def arguments_of(xml: str) -> list[str]:
    """What QEMU's command line says of machine, RAM and processor.

    :param xml: live domain XML.
    :raises MemoryAccessError: it says nothing of the machine or of the RAM.
    """
    root = parse_xml(xml)
    machine = root.find("os/type[@machine]")
    if machine is None:
        raise MemoryAccessError("the domain XML names no machine type")
    accelerator = "kvm" if root.get("type") == "kvm" else "tcg"
    architecture = machine.get("arch", "")
    program = f"qemu-system-{_ARCHITECTURES.get(architecture, architecture)}"
    arguments = [program, "-machine", f"{machine.get('machine')},accel={accelerator}"]
    # <memory> is all that the guest has, plugged devices included (virDomainDefGetMemoryTotal).
    plugged = sum(size_of(size) for size in root.iterfind("devices/memory/target/size"))
    boot = size_of(root.find("memory")) - plugged
    if boot <= 0:
        raise MemoryAccessError("the domain XML does not say how much RAM the guest has")
    memory = f"size={boot}b"
    most = root.find("maxMemory")
    if most is not None:
        memory += f",maxmem={size_of(most)}b,slots={most.get('slots', '0')}"
    arguments += ["-m", memory]
    processor = _processor(root)
    if processor:
        arguments += ["-cpu", processor]
    return arguments + [e.get("value", "") for e in root.iterfind(f"{_COMMAND_LINE}/*")]


def _processor(root: ElementTree.Element) -> str:
    model = root.findtext("cpu/model", "").strip()
    if root.find("cpu[@mode='maximum']") is not None:
        model = "max"
    vendor = _VENDORS.get(root.findtext("cpu/vendor", "").strip())
    return f"{model},vendor={vendor}" if vendor else model
