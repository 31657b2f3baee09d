"""What QEMU, libvirt and the hook say."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from virtintrospect_kvm import cpudump, domainxml, gdbxml
from virtintrospect_kvm.layout import layout_of
from virtintrospect_kvm.maps import find_blocks, parse_maps
from virtintrospect_kvm.options import parse_option, parse_size

from tests.fuzz.parsers.target import Target
from tests.unit.kvm.test_cpudump import LEGACY, LONG
from virtintrospect.daemon import config, inbox
from virtintrospect.domainxml import current_memory, disk_aliases, memory_devices, mergeable
from virtintrospect.errors import MemoryAccessError, VirtIntrospectError

_LINE = [
    "qemu-system-x86_64", "-machine", "pc-q35-7.2,usb=off,memory-backend=pc.ram", "-accel", "tcg",
    "-cpu", "EPYC,la57=off", "-m", "size=6291456k,slots=4,maxmem=16777216k", "-object",
    '{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"size":6442450944}',
    "-object", "memory-backend-ram,id=dimm,size=1G", "-device", "pc-dimm,memdev=dimm,addr=8G",
    "-numa", "node,nodeid=0,memdev=pc.ram", "-smp", "2",
]  # fmt: skip
_XML = b"""<domain type='kvm'><memory unit='KiB'>2097152</memory>
<currentMemory unit='KiB'>1048576</currentMemory><devices><disk type='file'>
<target dev='vda'/><alias name='virtio-disk0'/></disk><memory model='dimm'><target>
<size unit='KiB'>524288</size></target><address type='dimm' slot='0' base='0x100000000'/>
</memory></devices></domain>"""
_REMOTE = b"""<domain type='kvm'><memory unit='KiB'>2097152</memory><os>
<type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><cpu mode='custom'><model>EPYC</model></cpu>
</domain>"""
_MAPS = b"""55d0c8a00000-55d0c8b00000 r--p 00000000 fe:00 1234 /usr/bin/qemu-system-x86_64
7f3a00000000-7f3a40000000 rw-s 00000000 00:01 2051 /memfd:memory-backend-memfd (deleted)
7f3a40000000-7f3a40001000 ---p 00000000 00:00 0
7f3b80000000-7f3bc0000000 rw-p 00000000 00:00 0 [anon: pc.ram]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
"""


def _line(data: bytes) -> None:
    arguments = [part.decode("utf-8", "replace") for part in data.split(b"\0")]
    for xml in ("", _XML.decode()):
        with contextlib.suppress(VirtIntrospectError):
            layout_of(arguments, xml)


def _option(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for value in parse_option(text, "type").values():
        with contextlib.suppress(MemoryAccessError):
            parse_size(value)
    parse_size(text, unit="m")


def _xml(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    current_memory(text)
    disk_aliases(text)
    memory_devices(text)
    mergeable(text)
    layout_of(_LINE, text)


def _maps(data: bytes) -> None:
    mappings = parse_maps(data)
    find_blocks(layout_of(_LINE).blocks, mappings, [(m.device, m.inode) for m in mappings])


def _remote_xml(data: bytes) -> None:
    domainxml.arguments_of(data.decode("utf-8", "replace"))


def _cpu_dump(data: bytes) -> None:
    cpudump.parse(data.decode("utf-8", "replace"))


#: One input is two files: the description, and what it includes.
_CUT = b"\xf0cut here\xf0"
_STUB = (
    b"""<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>
<architecture>i386:x86-64</architecture><xi:include href="core.xml"/></target>"""
    + _CUT
    + b"""<?xml version="1.0"?><!DOCTYPE feature SYSTEM "gdb-target.dtd">
<feature name="org.gnu.gdb.i386.core"><flags id="f" size="4"><field name="CF" start="0" end="0"/>
</flags><reg name="rax" bitsize="64" type="int64" regnum="0"/><reg name="eflags" bitsize="32"
type="f"/><reg name="st0" bitsize="80" type="i387_ext"/></feature>"""
)


def _stub(data: bytes) -> None:
    first, _, other = data.partition(_CUT)
    gdbxml.describe(lambda name: first if name == "target.xml" else other)


def _config(data: bytes) -> None:
    config.parse(data.decode("utf-8", "replace"), Path("config.toml"))


def _hint(data: bytes) -> None:
    inbox.parse(data)


_CONFIG = b"[daemon]\ninterval = 10\n[hung]\nseconds = 5\n"
_HINT = {"version": 1, "domain": "web", "uuid": None, "operation": "started"}

TARGETS = [
    Target("QEMU's command line", lambda: ["\0".join(_LINE).encode()], _line, 300),
    Target("QEMU's options", lambda: [arg.encode() for arg in _LINE if "=" in arg], _option, 500),
    Target("domain XML", lambda: [_XML], _xml, 300),
    Target("domain XML of another host", lambda: [_REMOTE], _remote_xml, 300),
    Target("registers by the monitor", lambda: [LONG.encode(), LEGACY.encode()], _cpu_dump, 300),
    Target("gdb stub's description", lambda: [_STUB], _stub, 300),
    Target("/proc/PID/maps", lambda: [_MAPS], _maps, 300),
    Target("configuration", lambda: [_CONFIG], _config, 300),
    Target("hint of the hook", lambda: [json.dumps(_HINT).encode()], _hint, 500),
]
