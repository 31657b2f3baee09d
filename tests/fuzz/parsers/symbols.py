"""What kernels and people say of symbols and types."""

from __future__ import annotations

import io
import json
from functools import cache
from itertools import islice

from elftools.elf.elffile import ELFFile

from tests.fuzz.parsers.target import Target
from tests.unit.symbols.btf_blob import kernel
from tests.unit.symbols.kallsyms_image import VARIANTS, make_image, make_symbols
from tests.unit.symbols.small_vmlinux import BUILD_ID, small_vmlinux
from tests.unit.symbols.test_bring import MAP, small
from tests.unit.symbols.test_btf import ask_everything
from tests.unit.symbols.test_exports import BASE as EXPORTS_BASE
from tests.unit.symbols.test_exports import functions, image
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.symbols import dwarf, imported, isf, kallsyms, systemmap, vmcoreinfo, vmlinux
from virtintrospect.symbols.brought import Brought
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.dwarf_units import Sections
from virtintrospect.symbols.exports import find_exports
from virtintrospect.symbols.profile import unpack, unpack_header
from virtintrospect.symbols.store import Store
from virtintrospect.symbols.table import Symbols

_INFO = b"""OSRELEASE=6.1.0-57-amd64
BUILD-ID=01d2640d3a13145ee314eb05b155f141b7b7058b
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff82a1b0e0
SYMBOL(swapper_pg_dir)=ffffffff82a10000
NUMBER(phys_base)=0
SIZE(list_head)=16
OFFSET(list_head.next)=0
LENGTH(node_data)=1024
NUMBER(pgtable_l5_enabled)=0
KERNELOFFSET=1200000
CRASHTIME=1
"""


def _btf(data: bytes) -> None:
    ask_everything(Btf.parse(data))


def _split(data: bytes) -> None:
    base = Btf.parse(kernel().build())
    ask_everything(Btf.parse(data, base))


def _ask(symbols: Symbols | None) -> None:
    if symbols is None:
        return
    list(islice(symbols, 3000))
    for name in ("_text", "linux_banner", "init_task", "no such thing"):
        symbols.get(name)
        symbols.all(name)
    for address in (0, symbols.base, symbols.base + 0x1000, (1 << 64) - 1):
        symbols.lookup(address)
    list(symbols.search("*init*", 10))


_KALLSYMS = ("4.20-6.0 per-CPU", "6.4-6.14 per-CPU", "7.0 place-relative", "6.12 32-bit")


def _kallsyms_seeds() -> list[bytes]:
    variants = [VARIANTS[name] for name in _KALLSYMS]
    return [bytes(make_image(variant, make_symbols(variant, 300))[0]) for variant in variants]


def _kallsyms(data: bytes) -> None:
    for variant in (VARIANTS[_KALLSYMS[0]], VARIANTS[_KALLSYMS[-1]]):
        try:
            tables = kallsyms.find_tables(data, variant.base)
            _ask(Symbols(kallsyms.decode(data, tables), variant.base))
        except VirtIntrospectError:
            continue


def _exports_seeds() -> list[bytes]:
    names = ["_printk", "init_net", "init_task", "kfree"]
    return [bytes(image(width, names)[0x8000:0x9400]) for width in (2, 3)]


def _exports(data: bytes) -> None:
    whole = bytes(0x8000) + data[:0x10_0000]
    find_exports(memoryview(whole), EXPORTS_BASE, functions())


def _vmcoreinfo(data: bytes) -> None:
    info = vmcoreinfo.parse(data)
    for ask in (
        lambda: info.release, lambda: info.build_id, lambda: info.kernel_offset,
        lambda: info.symbol("swapper_pg_dir"), lambda: info.number("phys_base"),
        lambda: info.size("list_head"), lambda: info.offset("list_head.next"),
        lambda: info.length("node_data"),
    ):  # fmt: skip
        try:
            ask()
        except VirtIntrospectError:
            continue


#: One input is four sections, cut at this mark.
_CUT = b"\xf0cut here\xf0"


@cache
def _dwarf_seeds() -> list[bytes]:
    found = []
    for options in (("-gdwarf-2",), ("-gdwarf-4",), ("-gdwarf-5",), ("-g", "-gdwarf64")):
        elf = ELFFile(io.BytesIO(small_vmlinux(*options)[0]))
        names = (".debug_info", ".debug_abbrev", ".debug_str", ".debug_line_str")
        sections = [elf.get_section_by_name(name) for name in names]
        found.append(_CUT.join(section.data() if section else b"" for section in sections))
    return found


def _dwarf(data: bytes) -> None:
    parts = [memoryview(part) for part in data.split(_CUT, 3)]
    parts += [memoryview(b"")] * (4 - len(parts))
    blob = dwarf.read_types(Sections(*parts), "<")
    ask_everything(Btf.parse(blob))


@cache
def _vmlinux_seeds() -> list[bytes]:
    return [small_vmlinux("-g")[0], small_vmlinux("-g", "-gz")[0]]


def _vmlinux(data: bytes) -> None:
    found = vmlinux.read(memoryview(data))
    _ask(found.symbols)
    if found.types is not None:
        ask_everything(Btf.parse(found.types))


@cache
def _isf_seeds() -> list[bytes]:
    _, document = small()
    for key in ("user_types", "symbols"):
        document[key] = dict(islice(document[key].items(), 40)) | {
            name: document[key][name] for name in ("_text", "task_struct") if name in document[key]
        }
    return [json.dumps(document, indent=1).encode()]


def _isf(data: bytes) -> None:
    found = isf.read(data)
    _ask(found.symbols)
    assert found.types is not None
    ask_everything(Btf.parse(found.types))


def _system_map(data: bytes) -> None:
    _ask(systemmap.read(data, "System.map-6.1").symbols)


@cache
def _imported_seeds() -> list[bytes]:
    brought = vmlinux.read(memoryview(small_vmlinux("-g")[0]))
    return [b"".join(pieces) for _, pieces in imported.pack(brought, "vmlinux")]


def _imported(data: bytes) -> None:
    view = memoryview(data)
    imported.header(view)
    for unpack_it in (imported.types, imported.symbols):
        try:
            found = unpack_it(view)
        except VirtIntrospectError:
            continue
        _ask(found) if isinstance(found, Symbols) else ask_everything(found)


@cache
def _profile_seeds() -> list[bytes]:
    import tempfile
    from pathlib import Path

    brought = vmlinux.read(memoryview(small_vmlinux("-g")[0]))
    assert brought.symbols is not None
    with tempfile.TemporaryDirectory() as folder:
        types = Btf.parse(kernel().build())
        Store(Path(folder)).save(BUILD_ID, [(0, b"proof")], brought.symbols, types, {"note": 7})
        return [path.read_bytes() for path in Path(folder).glob("*.profile")]


def _profile(data: bytes) -> None:
    found = unpack(unpack_header(memoryview(data)))
    _ask(found.symbols)
    if found.types is not None:
        ask_everything(found.types)


def _build_id(data: bytes) -> None:
    for name in (data, data[:20]):
        Store(None).imports.types(name, data, data.decode("utf-8", "replace"))
    list(imported.pack(Brought("BTF", types=data, build_id=b"x"), data.decode("latin-1")))


TARGETS = [
    Target("BTF", lambda: [kernel().build(), kernel(">").build()], _btf, 250),
    Target("BTF of a module", lambda: [kernel().build()], _split, 150),
    Target("kallsyms", _kallsyms_seeds, _kallsyms, 40),
    Target("exports", _exports_seeds, _exports, 150),
    Target("VMCOREINFO", lambda: [_INFO], _vmcoreinfo, 500),
    Target("DWARF", _dwarf_seeds, _dwarf, 250),
    Target("vmlinux", _vmlinux_seeds, _vmlinux, 80),
    Target("ISF", _isf_seeds, _isf, 150),
    Target("System.map", lambda: [MAP], _system_map, 300),
    Target("imported file", _imported_seeds, _imported, 200),
    Target("profile", _profile_seeds, _profile, 300),
    Target("what is imported", lambda: [kernel().build()], _build_id, 200),
]
