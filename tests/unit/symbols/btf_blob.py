"""Builds BTF blobs for tests, a type at a time."""

from __future__ import annotations

import struct

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = (
    range(9, 20)
)

#: A member: name, type id, bit offset, width in bits (0: no bit field).
Members = list[tuple[str, int, int, int]]


class Blob:
    """A BTF blob that grows; each method adds a type and gives its id."""

    def __init__(self, order: str = "<", base: Blob | None = None) -> None:
        self.order = order
        self.first = base.next if base else 1
        self.next: int = self.first
        self.string_base: int = base.string_base + len(base.strings) if base else 0
        self.strings: bytes = b"" if base else b"\0"
        self.types = b""

    def string(self, text: str) -> int:
        if not text:
            return 0
        position = len(self.strings)
        self.strings += text.encode() + b"\0"
        return self.string_base + position

    def add(
        self,
        kind: int,
        name: str = "",
        word: int = 0,
        body: bytes = b"",
        vlen: int = 0,
        flag: int = 0,
    ) -> int:
        info = kind << 24 | vlen | flag << 31
        self.types += struct.pack(f"{self.order}3I", self.string(name), info, word) + body
        self.next += 1
        return self.next - 1

    def words(self, *values: int) -> bytes:
        return struct.pack(f"{self.order}{len(values)}I", *(v & 0xFFFFFFFF for v in values))

    def integer(
        self, name: str, size: int, *, signed: bool = False, bits: int = 0, shift: int = 0
    ) -> int:
        return self.add(
            INT, name, size, self.words(signed << 24 | shift << 16 | (bits or 8 * size))
        )

    def array(self, element: int, count: int) -> int:
        return self.add(ARRAY, body=self.words(element, 0, count))

    def struct(self, name: str, size: int, members: Members, kind: int = STRUCT) -> int:
        flag = any(width for *_, width in members)
        body = b"".join(
            self.words(self.string(member), type_id, width << 24 | bits)
            for member, type_id, bits, width in members
        )
        return self.add(kind, name, size, body, len(members), flag)

    def union(self, name: str, size: int, members: Members) -> int:
        return self.struct(name, size, members, UNION)

    def enum(self, name: str, values: dict[str, int], *, signed: bool = False) -> int:
        body = b"".join(self.words(self.string(key), value) for key, value in values.items())
        return self.add(ENUM, name, 4, body, len(values), signed)

    def enum64(self, name: str, values: dict[str, int], *, signed: bool = False) -> int:
        body = b"".join(
            self.words(self.string(key), value, value >> 32) for key, value in values.items()
        )
        return self.add(ENUM64, name, 8, body, len(values), signed)

    def proto(self, returns: int, parameters: list[int]) -> int:
        body = b"".join(self.words(0, parameter) for parameter in parameters)
        return self.add(FUNC_PROTO, word=returns, body=body, vlen=len(parameters))

    def build(self, header_size: int = 24, extra: bytes = b"") -> bytes:
        header = struct.pack(
            f"{self.order}HBBIIIII", 0xEB9F, 1, 0, header_size, 0, len(self.types),
            len(self.types), len(self.strings),
        )  # fmt: skip
        return (header + extra).ljust(header_size, b"\0") + self.types + self.strings


def kernel(order: str = "<") -> Blob:
    """A small kernel: a task, its credentials, a list, and one type of every kind."""
    b = Blob(order)
    char = b.integer("char", 1, signed=True)
    int_ = b.integer("int", 4, signed=True)
    u32 = b.integer("unsigned int", 4)
    u64 = b.integer("unsigned long", 8)
    list_head = b.next
    b.struct("list_head", 16, [("next", list_head + 1, 0, 0), ("prev", list_head + 1, 64, 0)])
    b.add(PTR, word=list_head)
    uid_t = b.add(TYPEDEF, "uid_t", u32)
    kuid = b.add(TYPEDEF, "kuid_t", b.struct("", 4, [("val", uid_t, 0, 0)]))
    cred = b.struct("cred", 8, [("usage", int_, 0, 0), ("uid", kuid, 32, 0)])
    cred_pointer = b.add(PTR, word=b.add(TYPE_TAG, "rcu", b.add(CONST, word=cred)))
    text = b.array(char, 16)
    memory = b.struct("module_memory", 16, [("base", u64, 0, 0), ("size", u32, 64, 0)])
    anonymous = b.union("", 8, [
        ("raw", u64, 0, 0),
        ("", b.struct("", 8, [("low", u32, 0, 0), ("high", u32, 32, 0)]), 0, 0),
    ])  # fmt: skip
    file = b.add(FWD, "file")
    file_pointer = b.add(PTR, word=file)
    constant = b.add(CONST, word=char)
    function = b.add(PTR, word=b.proto(int_, [file_pointer, b.add(PTR, word=constant), 0]))
    state = b.enum("state", {"RUNNING": 0, "DEAD": -2}, signed=True)
    task = b.next
    b.struct("task_struct", 256, [
        ("state", state, 0, 0),
        ("flag_a", u32, 32, 1),
        ("flag_b", int_, 33, 3),
        ("tasks", list_head, 64, 0),
        ("cred", cred_pointer, 192, 0),
        ("comm", text, 256, 0),
        ("", anonymous, 384, 0),
        ("mem", b_array := task + 1, 448, 0),
        ("parent", task + 2, 960, 0),
        ("open", function, 1024, 0),
        ("grid", task + 4, 1088, 0),
        ("files", file_pointer, 1600, 0),
    ])  # fmt: skip
    assert b.array(memory, 4) == b_array
    b.add(PTR, word=task)
    b.add(TYPEDEF, "row_t", b.next + 2)
    b.array(task + 3, 4)
    b.array(u32, 4)
    b.struct("old_bits", 4, [("three", b.integer("u3", 4, bits=3), 5, 0), ("plain", u32, 0, 0)])
    b.enum64("big", {"LOW": 1, "HIGH": 1 << 40, "ALL": (1 << 64) - 1})
    b.enum64("negative", {"NONE": -1}, signed=True)
    b.add(FLOAT, "double", 8)
    b.add(FUNC, "do_open", b.proto(0, [int_]), vlen=1)
    b.add(DATASEC, ".data..percpu", 8, b.words(b.next + 1, 0, 8), 1)
    b.add(VAR, "current_task", task + 2, b.words(1))
    b.add(DECL_TAG, "tag", task, b.words(-1))
    b.add(VOLATILE, word=b.add(RESTRICT, word=task + 2))
    b.struct("overlap", 8, [("twin", u32, 0, 0)])
    b.add(TYPEDEF, "overlap", u64)
    return b
