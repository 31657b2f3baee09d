"""A real guest's RAM, bent in chosen places: what a hostile kernel could show us.

Every mutation follows from its seed, so a failure is repeated by its number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.fuzz.anatomy import Anatomy
from tests.fuzz.members import GLOBALS
from tests.fuzz.memory import Image
from virtintrospect.errors import FaultError
from virtintrospect.symbols.btf import Btf

_U64 = (1 << 64) - 1


class Mutation:
    """One seed's worth of changes to an image.

    :param anatomy: of the image as it was; it is not changed.
    """

    def __init__(self, anatomy: Anatomy, memory: Image, seed: int) -> None:
        self._anatomy = anatomy
        self._guest = anatomy.guest
        self._memory = memory
        self._random = random.Random(seed)
        #: What was done, for the report of a failure.
        self.story: list[str] = []
        #: The kernel's read-only data was changed: nothing cached will fit.
        self.cold = False

    def apply(self) -> None:
        """Change the memory."""
        ways: list[tuple[int, Callable[[], None]]] = [
            (60, self._member), (12, self._mass), (8, self._noise), (8, self._global),
            (8, self._page_table), (15, self._type), (3, self._read_only), (2, self._info_text),
        ]  # fmt: skip
        chosen = [way for _, way in ways]
        weights = [weight for weight, _ in ways]
        for way in self._random.choices(chosen, weights, k=self._random.choice((1, 1, 2, 5, 20))):
            way()

    # -- ways to lie ------------------------------------------------------------------------

    def _member(self) -> None:
        """One member of one object."""
        name = self._random.choice(list(self._anatomy.objects))
        address = self._random.choice(self._anatomy.objects[name])
        path, offset, size = self._random.choice(self._anatomy.members[name])
        self._put(address + offset, self._value(address, size), f"{name}.{path}")

    def _mass(self) -> None:
        """The same member of all objects, each by itself or all alike."""
        name = self._random.choice(list(self._anatomy.objects))
        path, offset, size = self._random.choice(self._anatomy.members[name])
        alike = self._random.random() < 0.5
        value = self._value(self._random.choice(self._anatomy.objects[name]), size)
        for address in self._anatomy.objects[name]:
            self._put(
                address + offset,
                value if alike else self._value(address, size),
                f"every {name}.{path}",
            )

    def _noise(self) -> None:
        """Random bytes somewhere in an object."""
        name = self._random.choice(list(self._anatomy.objects))
        address = self._random.choice(self._anatomy.objects[name])
        size = self._guest.types.sizeof(name)
        for _ in range(self._random.choice((1, 16, 256))):
            where = address + self._random.randrange(size)
            self._put(where, self._random.randbytes(self._random.choice((1, 8))), f"in {name}")

    def _global(self) -> None:
        name = self._random.choice([n for n in GLOBALS if n in self._guest.symbols])
        address = self._guest.symbols.address(name)
        for number in range(self._random.choice((1, 1, 64))):
            self._put(address + 8 * number, self._value(address, 8), name)

    def _page_table(self) -> None:
        """An entry of the kernel's tables, or of a process's."""
        roots = [self._guest.kernel.root]
        mode = self._guest.kernel.mode
        for mm in self._anatomy.objects["mm_struct"]:
            pgd = self._guest.kernel.read_u64(mm + self._guest.types.offsetof("mm_struct", "pgd"))
            roots.append(self._guest.kernel.translate(pgd))
        table = self._random.choice(roots)
        for _ in range(self._random.randrange(1, len(mode.levels))):
            entries = [
                entry
                for entry in memoryview(self._memory.read(table, 4096)).cast("Q")
                if entry & mode.present and not entry & mode.leaf
            ]
            if not entries:
                break
            following = self._random.choice(entries) & mode.frame
            if self._memory.region_index(following) < 0:
                break
            table = following
        for _ in range(self._random.choice((1, 8, 512))):
            entry = self._random.choice((
                0, 0x67, 0xE7, table | 0x67, table | 0xE7, self._guest.kernel.root | 0x63,
                self._random.getrandbits(64), self._random.getrandbits(28) & -4096 | 0x67,
            ))  # fmt: skip
            where = table + 8 * self._random.randrange(512)
            self._memory.write(where, entry.to_bytes(8, "little"))
        self.story.append(f"page table {table:#x}")

    def _type(self) -> None:
        """The record of a type that tables use: its size and kind, or those of a member."""
        types = self._guest.types
        assert isinstance(types, Btf)
        name = self._random.choice([*self._anatomy.objects, "list_head", "cpumask", "btf"])
        type_id = types.find(name)
        start = self._guest.symbols.address("__start_BTF")
        for _ in range(self._random.choice((1, 1, 4))):
            offset, word = self._type_word(types, name, type_id)
            old = int.from_bytes(self._guest.kernel.read(start + offset, 4), "little")
            new = self._random.choice((
                0, 1, old ^ 1 << self._random.randrange(32), self._random.getrandbits(32),
                self._random.randrange(1, types.end_id), types.find("list_head"),
                types.find("char"), types.find("long int"), (old + 8) & 0xFFFF_FFFF,
                old | 0x0800_0000, self._random.randrange(1, 20) << 24,
            ))  # fmt: skip
            self._put(start + offset, new.to_bytes(4, "little"), f"type of {word}")
        self.cold = True

    def _type_word(self, types: Btf, name: str, type_id: int) -> tuple[int, str]:
        """Offset in BTF of a word that describes a type, or one of its members in use."""
        offset, _ = types._head(type_id)
        used = {path.split(".")[0] for path, _, _ in self._anatomy.members.get(name, [])}
        members = [
            (number, member)
            for number, member in enumerate(types.node(type_id).members)
            if member.name in used or not used
        ]
        if not members or self._random.random() < 0.2:
            return offset + 4 * self._random.randrange(3), name
        number, member = self._random.choice(members)
        if self._random.random() < 0.4:
            inner, _ = types._head(types.strip(member.type_id)[0])
            return inner + 4 * self._random.randrange(4), f"{name}.{member.name}'s type"
        return offset + 12 + 12 * number + 4 * self._random.randrange(3), f"{name}.{member.name}"

    def _read_only(self) -> None:
        """Bytes of kallsyms or BTF."""
        first, last = self._random.choice((
            ("__start_BTF", "__stop_BTF"), ("__start_rodata", "__end_rodata"),
            ("__start_notes", "__stop_notes"),
        ))  # fmt: skip
        symbols = self._guest.symbols
        if first in symbols and last in symbols:
            start, end = symbols.address(first), symbols.address(last)
            for _ in range(self._random.choice((1, 8, 1000))):
                self._put(self._random.randrange(start, end), self._random.randbytes(4), first)
            self.cold = True

    def _info_text(self) -> None:
        """Letters of VMCOREINFO."""
        address = self._guest.pointer("vmcoreinfo_data")
        for _ in range(self._random.choice((1, 64))):
            where = address + self._random.randrange(4096)
            self._put(where, self._random.choice((b"\0", b"=", b"\n", b"\xff", b"9")), "VMCOREINFO")

    # -- what to put there ------------------------------------------------------------------

    def _value(self, address: int, size: int) -> bytes:
        if size > 8:
            return self._random.choice((
                b"\x1b]0;owned\x07\r\n\t\xe2\x80\xae"[:size], b"\xff" * size, bytes(size),
                self._random.randbytes(size),
            ))  # fmt: skip
        value = self._random.choice((self._pointer, self._number))(address)
        return (value & _U64).to_bytes(8, "little")[:size]

    def _pointer(self, address: int) -> int:
        offset = self._random.choice((0, 0, 8, 16, self._random.randrange(4096)))
        return self._random.choice((
            address, address + offset, self._random.choice(self._anatomy.everything) + offset,
            self._random.choice(self._anatomy.everything), 0, 8, 0x1000, 1 << 63, _U64, _U64 - 7,
            (1 << 47) - 4, 0xFFFF_8000_0000_0000, self._guest.kernel.linear[0].start + offset,
            self._guest.kernel.linear[0].end - self._random.randrange(16),
        ))  # fmt: skip

    def _number(self, _: int) -> int:
        return self._random.choice((
            0, 1, -1, 2, 63, 64, 200, 0x7FFF_FFFF, 0x8000_0000, 1 << 62, 1 << 63,
            self._random.getrandbits(8), self._random.getrandbits(32), self._random.getrandbits(64),
        ))  # fmt: skip

    def _put(self, vaddr: int, data: bytes, what: str) -> None:
        try:
            self._memory.write(self._guest.kernel.translate(vaddr), data)
        except FaultError:
            return
        if len(self.story) < 40:
            self.story.append(f"{what} at {vaddr:#x} = {data.hex()}")


def seeds(first: int) -> Iterator[int]:
    """Seeds from ``first`` on."""
    while True:
        yield first
        first += 1
