"""Shared RAM for a domain: what its XML says, and how it has to change.

Only ``<memoryBacking>`` and ``memAccess`` of ``<numa>`` cells are written. libvirt's own text is
edited, not printed anew, so that nothing else can change; and the result is compared.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.memory.virt import ram_start

_ELEMENT = re.compile(
    r"^  <memoryBacking(?:/>|>.*?^  </memoryBacking>)\n", re.MULTILINE | re.DOTALL
)
_CELL = re.compile(r"(<cell [^>]*memAccess=)(['\"])private\2")
_BEFORE = re.compile(r"^  <vcpu\b", re.MULTILINE)
_MACHINE = re.compile(r"(pc|q35)(-.*)?")
#: QEMU's names of architectures that libvirt calls otherwise.
_QEMU_NAMES = {"armv7l": "arm", "armv6l": "arm"}


class CannotShareError(VirtIntrospectError):
    """Shared RAM makes no sense for a domain, or is not to be had by a change of its XML."""


def is_shared(xml: str) -> bool:
    """Whether all RAM that the XML gives a guest at its start is a file that can be mapped."""
    root = _parse(xml)
    backing = root.find("memoryBacking")
    cells = [cell.get("memAccess") for cell in root.iterfind("cpu/numa/cell")]
    if backing is None:
        return False
    source = backing.find("source")
    named = source is not None and source.get("type") in ("memfd", "file")
    access = backing.find("access")
    mode = access.get("mode") if access is not None else None
    modes = [cell or mode for cell in cells] or [mode]
    return (named or backing.find("hugepages") is not None) and set(modes) == {"shared"}


def unsupported_machine(xml: str) -> str | None:
    """The machine type where it is not one whose memory map is known; ``None`` if it is."""
    kind = _parse(xml).find("os/type")
    if kind is None:
        return "unknown"
    machine, arch = kind.get("machine", ""), kind.get("arch", "x86_64")
    if arch in ("x86_64", "i686") and (not machine or _MACHINE.fullmatch(machine)):
        return None
    if ram_start(_QEMU_NAMES.get(arch, arch), machine) is not None:
        return None
    return f"{arch} {machine}".strip()


def is_confidential(xml: str) -> bool:
    """Whether the host would see only ciphertext."""
    return _parse(xml).find("launchSecurity") is not None


def with_shared_ram(xml: str) -> str:
    """The persistent XML of a domain, changed so that its RAM can be mapped.

    Huge pages and file-backed memory stay what they are and become shared; anonymous memory
    becomes a memfd. Locking, allocation, discard and the rest stay.

    :raises CannotShareError: it makes no sense, with the reason.
    """
    root = _parse(xml)
    if root.get("type") not in ("kvm", "qemu", "hvf"):
        raise CannotShareError(f"a domain of type {root.get('type')!r} has no memory of QEMU")
    if is_confidential(xml):
        raise CannotShareError(
            "this is a confidential guest: its memory is encrypted, shared or not",
            hint="use an agent in the guest",
        )
    if machine := unsupported_machine(xml):
        raise CannotShareError(f"machine type {machine!r}: its memory cannot be read anyway")
    changed = _CELL.sub(r"\1\2shared\2", xml)
    backing = root.find("memoryBacking")
    if backing is None:
        backing = ElementTree.Element("memoryBacking")
    backing.tail = None
    _share(backing)
    text = _print(backing)
    if _ELEMENT.search(changed):
        changed = _ELEMENT.sub(lambda _: text, changed, count=1)
    else:
        place = _BEFORE.search(changed)
        if place is None:
            raise CannotShareError("the domain XML has no <vcpu> where libvirt puts it")
        changed = changed[: place.start()] + text + changed[place.start() :]
    if not is_shared(changed) or _rest(changed) != _rest(xml):
        raise CannotShareError(
            "the domain XML is laid out in a way that is not understood",
            hint="virsh edit, and put <source type='memfd'/><access mode='shared'/> into "
            "<memoryBacking>",
        )
    return changed


def _share(backing: ElementTree.Element) -> None:
    source, access = backing.find("source"), backing.find("access")
    if backing.find("hugepages") is None:
        if source is None:
            source = ElementTree.SubElement(backing, "source")
        if source.get("type") not in ("memfd", "file"):
            source.set("type", "memfd")
    if access is None:
        access = ElementTree.SubElement(backing, "access")
    access.set("mode", "shared")


def _print(backing: ElementTree.Element) -> str:
    """The element as libvirt indents it."""
    whole = ElementTree.Element("domain")
    whole.append(backing)
    ElementTree.indent(whole)
    text = ElementTree.tostring(whole, encoding="unicode").replace('"', "'").replace(" />", "/>")
    return text.removeprefix("<domain>\n").removesuffix("</domain>")


def _rest(xml: str) -> bytes:
    """Everything but what :func:`with_shared_ram` may change."""
    root = _parse(xml)
    for backing in root.findall("memoryBacking"):
        root.remove(backing)
    for cell in root.iterfind("cpu/numa/cell"):
        cell.attrib.pop("memAccess", None)
    for element in root.iter():
        element.tail = (element.tail or "").strip()
        element.text = (element.text or "").strip()
    return ElementTree.tostring(root)


def _parse(xml: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(xml)  # noqa: S314  # libvirt's own output, no entities
    except ElementTree.ParseError as error:
        raise CannotShareError(f"the domain XML cannot be parsed: {error}") from error
