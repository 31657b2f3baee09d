"""What stands at its place in the XML of a domain counts, what was written about it does not."""

from __future__ import annotations

import time

import pytest

from virtintrospect.domain import Domain
from virtintrospect.domainxml import (
    architecture,
    current_memory,
    disk_aliases,
    memory_devices,
    mergeable,
)
from virtintrospect.insight.hints import Facts
from virtintrospect.insight.history import Window
from virtintrospect.insight.policy import load_policy

_XML = """<domain type='kvm'>
  <name>web01</name>
  <memory unit='KiB'>524288</memory>
  <currentMemory unit='KiB'>262144</currentMemory>
  <vcpu placement='static' current='1'>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <target dev='vda' bus='virtio'/><serial>s-1</serial>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sda' bus='sata'/>
      <address type='drive' controller='0' bus='0' target='0' unit='0'/>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>"""

#: A domain of other numbers and devices, as a user of libvirt can write it about his own.
_IMITATION = """<memory unit='KiB'>1</memory><currentMemory unit='KiB'>2</currentMemory>
<memoryBacking><nosharepages/><source type='memfd'/></memoryBacking>
<vcpu current='7'>8</vcpu>
<vcpus><vcpu id='1' enabled='yes' hotpluggable='yes'/></vcpus>
<cpu><numa/></cpu><numatune><memory mode='strict'/></numatune>
<os><type arch='ppc64' machine='pseries'>hvm</type></os>
<devices><disk><target dev='vdb'/><serial>s-1</serial></disk>
<memory model='dimm'/><memballoon model='virtio' freePageReporting='on'/></devices>"""
_METADATA = f"<metadata><x:note xmlns:x='urn:x'>{_IMITATION}</x:note></metadata>"


def facts(xml: str) -> Facts:
    return Facts(Window([]), load_policy(), Domain("web01", "u", 1, "running", "QEMU", "", xml=xml))


def said(xml: str) -> list[object]:
    """All that is read from a domain's XML."""
    looked = facts(xml)
    return [
        architecture(xml), current_memory(xml), disk_aliases(xml), memory_devices(xml),
        mergeable(xml), looked.current, looked.maximum, looked.has_balloon,
        looked.reports_free_pages, looked.vcpus, looked.shared, looked.mergeable, looked.has_numa,
        looked.unpluggable,
    ]  # fmt: skip


def test_what_it_says() -> None:
    aliases = {b"s-1": "vda", b"0000:04:00.0": "vda"}
    assert said(_XML) == [
        "x86_64", 262144, aliases, (), True, 262144 << 10, 524288 << 10, False, False, (1, 2),
        False, True, False, 0,
    ]  # fmt: skip
    assert said("<domain/>") == said("") == said("<domain") == [
        "", None, {}, (), True, None, None, False, False, None, False, True, False, 0,
    ]  # fmt: skip
    other = said(f"<domain>{_IMITATION}</domain>")
    assert other == [
        "ppc64", 2, {b"s-1": "vdb"}, (b"<memory model=\"dimm\" />",), False, 2048, 1024, True, True,
        (7, 8), True, False, True, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["<name>", "<devices>", "</domain>"])
@pytest.mark.parametrize(
    "words",
    [_METADATA, f"<description><![CDATA[{_IMITATION}]]></description>", f"<!--{_IMITATION}-->"],
)
def test_what_is_written_about_a_domain_is_no_part_of_it(place: str, words: str) -> None:
    assert said(_XML.replace(place, f"{words}{place}")) == said(_XML)


def test_odd_numbers() -> None:
    for number in ("9" * 5000, "-1", "\u0661", ""):
        element = f"<currentMemory unit='KiB'>{number}</currentMemory>"
        assert current_memory(f"<domain>{element}</domain>") is None
        assert facts(f"<domain><vcpu>{number}</vcpu></domain>").vcpus is None
    assert current_memory("<domain><currentMemory unit='MiB'>2</currentMemory></domain>") == 2048
    assert current_memory("<domain><currentMemory>2</currentMemory></domain>") == 2


def test_an_xml_without_end() -> None:
    began = time.process_time()
    assert disk_aliases("<domain>" + "<disk <address type='pci' " * 60_000) == {}
    assert disk_aliases("<domain>" + "<disk>" * 60_000) == {}
    assert time.process_time() - began < 5
