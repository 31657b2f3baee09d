"""What QEMU's monitor says is not believed blindly: a QEMU may be anybody's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtintrospect_kvm.domainxml import arguments_of as arguments_of_xml
from virtintrospect_kvm.layout import layout_of
from virtintrospect_kvm.qmp import Monitor, MonitorError
from virtintrospect_kvm.saved import MOST_PRINTED, MonitorReader
from virtintrospect_kvm.standalone import arguments_of

from virtintrospect.errors import (
    EncryptedMemoryError,
    FaultError,
    MemoryAccessError,
    VirtIntrospectError,
)

GIB = 1 << 30
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 65), 1 << 65) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
Replies = dict[str, Any]


class Scripted(Monitor):
    """Answers as it is told; a function is called with the arguments."""

    def __init__(self, replies: Replies) -> None:
        self.replies = replies
        self.closed = 0

    def command(self, name: str, arguments: Any = None, *, files: Sequence[int] = ()) -> Any:
        arguments = dict(arguments or {})
        key = f"{name} {arguments.get('property', '')}".strip()
        if key not in self.replies:
            raise MonitorError(name, "CommandNotFound", "no such thing")
        reply = self.replies[key]
        return reply(arguments, files) if isinstance(reply, Callable) else reply  # type: ignore[arg-type]

    def close(self) -> None:
        self.closed += 1


def pc(**more: Any) -> Scripted:
    return Scripted({
        "qom-get type": "pc-q35-7.2-machine", "query-memory-size-summary": {"base-memory": 4 * GIB},
        "query-cpus-fast": [{"qom-path": "/machine/unattached/device[0]"}], "qom-list": [],
        "query-memory-devices": [], "query-target": {"arch": "x86_64"},
    } | {name.replace("_", "-"): value for name, value in more.items()})  # fmt: skip


def test_map_from_the_monitor() -> None:
    devices = [
        {"type": "dimm", "data": {"addr": 8 * GIB, "size": GIB}},
        {"type": "virtio-mem", "data": {"memaddr": 10 * GIB, "max-size": GIB, "size": 0}},
        {"type": "nvdimm", "data": {"addr": 20 * GIB, "size": GIB}},
        {"type": "dimm", "data": {"addr": "8", "size": True}},
        {"type": "dimm"}, "nonsense",
    ]  # fmt: skip
    layout = layout_of(arguments_of(pc(query_memory_devices=devices)))
    assert [(p.start, p.end) for p in layout.pieces] == [
        (0, 0xA0000), (0xC0000, 2 * GIB), (4 * GIB, 6 * GIB), (8 * GIB, 9 * GIB),
        (10 * GIB, 11 * GIB),
    ]  # fmt: skip


def test_confidential_guest() -> None:
    objects = [{"name": "type", "type": "string"}, {"name": "sev0", "type": "child<sev-guest>"}]
    with pytest.raises(EncryptedMemoryError, match="SEV"):
        layout_of(arguments_of(pc(qom_list=objects)))


@given(st.sampled_from(sorted(pc().replies)), JSON)
def test_any_reply(name: str, reply: Any) -> None:
    monitor = pc()
    monitor.replies[name] = reply
    with contextlib.suppress(VirtIntrospectError):
        layout_of(arguments_of(monitor))


def printing(text: Callable[[int, int], str]) -> MonitorReader:
    """A reader whose QEMU takes no files and prints what ``text`` makes of words and address."""

    def xp(arguments: Any, _: Any) -> str:
        _, words, address = arguments["command-line"].split()
        return text(int(words[1:-2]), int(address, 16))

    reader = MonitorReader(Scripted({"human-monitor-command": xp}))
    assert not reader.saves
    assert reader.most() == MOST_PRINTED
    return reader


def well(words: int, address: int) -> str:
    lines = [
        f"{address + at * 8:016x}: {address + at * 8:#018x} {address + at * 8 + 8:#018x}\r\n"
        for at in range(0, words, 2)
    ]
    return "".join(lines)


def test_printed_memory() -> None:
    reader = printing(well)
    expected = b"".join(at.to_bytes(8, "little") for at in range(0x1000, 0x1040, 8))
    assert reader.read(0x1000, 64) == expected
    assert reader.read(0x1003, 7) == expected[3:10]
    assert reader.read(0x100F, 2) == expected[15:17]


@pytest.mark.parametrize(
    "text",
    [
        lambda *_: "",
        lambda *_: "nonsense",
        lambda words, address: well(words, address + 16),
        lambda words, address: well(words + 2, address),
        lambda words, address: well(words - 2, address),
        lambda words, address: well(words, address).replace("0x", "0y"),
    ],
)
def test_printed_nonsense(text: Callable[[int, int], str]) -> None:
    with pytest.raises(MemoryAccessError, match="xp"):
        printing(text).read(0x1000, 32)


def test_printed_hole() -> None:
    with pytest.raises(FaultError):
        printing(lambda *_: "0000000000001000: Cannot access memory\r\n").read(0x1000, 16)


@given(st.text())
def test_printed_anything(text: str) -> None:
    with pytest.raises(MemoryAccessError):
        printing(lambda *_: text).read(0x1000, 16)


class Saving(Scripted):
    """Takes a file and saves into it: ``short`` bytes too few."""

    def __init__(self, short: int = 0) -> None:
        super().__init__({"add-fd": self.add, "pmemsave": self.save, "remove-fd": self.remove})
        self.short = short
        self.file = -1
        self.sets: list[int] = []

    def add(self, arguments: Any, files: Sequence[int]) -> Any:
        self.file = os.dup(files[0])
        self.sets.append(arguments["fdset-id"])
        return {"fd": 12, "fdset-id": arguments["fdset-id"]}

    def save(self, arguments: Any, _: Any) -> Any:
        assert arguments["filename"] == "/proc/self/fd/12"
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, bytes(arguments["size"] - self.short), 0)
        return {}

    def remove(self, arguments: Any, _: Any) -> Any:
        self.sets.remove(arguments["fdset-id"])
        os.close(self.file)
        return {}


def test_saved_memory_and_what_is_taken_back() -> None:
    monitor = Saving()
    reader = MonitorReader(monitor)
    assert reader.saves
    assert reader.read(0x1000, 5000) == bytes(5000)
    monitor.short = 1
    with pytest.raises(MemoryAccessError, match="did not save"):
        reader.read(0x1000, 5000)
    reader.close()
    reader.close()
    assert monitor.sets == []


def test_file_that_stays_empty_is_taken_back() -> None:
    monitor = Saving(short=4096)
    reader = MonitorReader(monitor)
    assert not reader.saves
    reader.close()
    assert monitor.sets == []


@given(JSON)
def test_any_answer_to_a_file(reply: Any) -> None:
    reader = MonitorReader(Scripted({"add-fd": reply, "pmemsave": {}}))
    assert not reader.saves
    reader.close()


XML = """<domain type='{kind}'><memory unit='KiB'>{kib}</memory>{more}
<os><type machine='pc-q35-7.2'>hvm</type></os><cpu mode='custom'><model>EPYC</model>
<vendor>AMD</vendor></cpu><devices>{devices}</devices></domain>"""


def test_map_from_the_xml() -> None:
    dimm = ("<memory model='dimm'><target><size unit='MiB'>1024</size></target><alias name='d0'/>"
            "<address type='dimm' slot='0' base='0x200000000'/></memory>")  # fmt: skip
    xml = XML.format(kind="kvm", kib=5 << 20, devices=dimm,
                     more="<maxMemory slots='4' unit='GiB'>8</maxMemory>")  # fmt: skip
    arguments = arguments_of_xml(xml)
    assert arguments[1:] == [
        "-machine", "pc-q35-7.2,accel=kvm", "-m", f"size={4 * GIB}b,maxmem={8 * GIB}b,slots=4",
        "-cpu", "EPYC,vendor=AuthenticAMD",
    ]  # fmt: skip
    assert [(p.start, p.end) for p in layout_of(arguments, xml).pieces][-1] == (8 * GIB, 9 * GIB)


def test_vendor_of_the_other_host_counts() -> None:
    xml = XML.format(kind="kvm", kib=1 << 30, devices="", more="")
    xml = xml.replace("<vendor>AMD</vendor>", "")
    arguments = arguments_of_xml(xml)
    assert layout_of(arguments, xml, lambda: True).pieces[-1].start == 1 << 40
    assert layout_of(arguments, xml, lambda: False).pieces[-1].start == 4 * GIB


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        ("<domain/>", "no machine type"),
        (XML.format(kind="qemu", kib=0, devices="", more=""), "how much RAM"),
        (XML.format(kind="qemu", kib="much", devices="", more=""), "how much RAM"),
        ("<domain>", "cannot be parsed"),
    ],
)
def test_xml_that_says_too_little(xml: str, problem: str) -> None:
    with pytest.raises(MemoryAccessError, match=problem):
        arguments_of_xml(xml)
