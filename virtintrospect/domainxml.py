"""What the XML of a libvirt domain says (libvirt's docs/formatdomain), read at exact paths.

Its description, title and metadata hold what any user of libvirt wrote there: nothing in them is
taken for an element of the domain.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: Bytes of the units that libvirt writes (docs/formatdomain: memory); KiB where it names none.
UNITS = {
    "b": 1, "bytes": 1, "KB": 10**3, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20,
    "MiB": 1 << 20, "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40,
    "TiB": 1 << 40,
}  # fmt: skip
_HEX = re.compile(r"0x([0-9a-f]{1,8})")


def parse_xml(xml: str) -> Element:
    """The root of a domain's XML, an empty one where there is none, or what there is is no XML."""
    from xml.etree import ElementTree

    try:
        # libvirt itself has written this text; it carries no document type.
        return ElementTree.fromstring(xml)  # noqa: S314
    except ElementTree.ParseError:
        return ElementTree.Element("domain")


def number_of(text: str | None) -> int | None:
    """A decimal number of an element or attribute; ``None`` where there is none."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 21 else None


def size_of(element: Element | None) -> int:
    """Bytes that an element with a unit stands for; 0 where there is none."""
    number = None if element is None else number_of(element.text)
    if element is None or number is None:
        return 0
    return number * UNITS.get(element.get("unit", "KiB"), 1 << 10)


def architecture(xml: str) -> str:
    """The guest's, as libvirt names it (``x86_64``); empty where that is not known."""
    kind = parse_xml(xml).find("os/type")
    return "" if kind is None else kind.get("arch", "")


def current_memory(xml: str) -> int | None:
    """KiB that the balloon leaves the guest, as the live XML of a domain has them."""
    return size_of(parse_xml(xml).find("currentMemory")) >> 10 or None


def memory_devices(xml: str) -> tuple[bytes, ...]:
    """Plugged memory, each device as its element: what of the XML decides where memory lies."""
    from xml.etree import ElementTree

    return tuple(map(ElementTree.tostring, parse_xml(xml).iterfind("devices/memory")))


def mergeable(xml: str) -> bool:
    """Whether KSM may merge the pages of a domain of this XML."""
    backing = parse_xml(xml).find("memoryBacking")
    if backing is None:
        return True
    kept = backing.find("nosharepages"), backing.find("hugepages")
    return kept == (None, None) and not shared(backing)


def shared(backing: Element | None) -> bool:
    """Whether ``<memoryBacking>`` makes of the memory a file that others may map, too."""
    source = None if backing is None else backing.find("source")
    return source is not None and source.get("type") in ("memfd", "file")


def disk_aliases(xml: str) -> dict[bytes, str]:
    """Names of a domain's disks (``vda``), by their PCI address and by their serial number.

    As libvirt itself does, this takes the bus numbers of its XML for those that the guest sees.
    """
    found: dict[bytes, str] = {}
    for disk in parse_xml(xml).iterfind("devices/disk"):
        target = disk.find("target")
        name = None if target is None else target.get("dev")
        if not name:
            continue
        serial, address = disk.findtext("serial"), disk.find("address[@type='pci']")
        if serial:
            found[serial.encode()] = name
        if address is not None:
            matches = [_HEX.fullmatch(address.get(key, "")) for key in _PLACE]
            place = tuple(int(match[1], 16) if match else 0 for match in matches)
            found[b"%04x:%02x:%02x.%x" % place] = name
    return found


_PLACE = ("domain", "bus", "slot", "function")
