"""Builds synthetic kernel images with kallsyms tables, in every format kernels have used.

Synthetic throughout: the symbols are invented, and the compressor is simpler than that of
scripts/kallsyms.c (it picks tokens once, not greedily); the layout of the tables is the kernel's.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from dataclasses import dataclass

BASE = 0xFFFFFFFF9A000000
NOISE = 0x3000


@dataclass(frozen=True)
class Variant:
    """How the tables are written."""

    order: str = "new"  # old (until 6.3), new (6.4 on)
    seqs: int = 0  # bytes a symbol of seqs_of_names
    addresses: str = "relative"  # absolute, percpu, relative, place
    marker_size: int = 4
    align: int = 8
    byteorder: str = "<"
    wide: bool = True
    base: int = BASE
    skew: int = 0  # bytes by which the first table misses an address that 8 divides

    @property
    def pointer(self) -> str:
        return "Q" if self.base >> 32 else "I"


OLDEST = Variant("old", 0, "absolute", 8, wide=False)
VARIANTS = {
    "2.6.10-4.5 absolute": OLDEST,
    "4.6-4.19 per-CPU, 64-bit markers": Variant("old", 0, "percpu", 8, wide=False),
    "4.20-6.0 per-CPU": Variant("old", 0, "percpu", wide=False),
    "4.20-6.0 relative": Variant("old", 0, "relative", wide=False),
    "4.20-6.0 absolute": Variant("old", 0, "absolute", wide=False),
    "6.1 per-CPU, wide": Variant("old", 0, "percpu"),
    "6.2-6.3 per-CPU, seqs in between": Variant("old", 3, "percpu"),
    "6.4-6.14 per-CPU": Variant("new", 3, "percpu"),
    "6.4 absolute": Variant("new", 3, "absolute"),
    "6.15 relative": Variant("new", 3, "relative"),
    "7.0 place-relative": Variant("new", 3, "place", align=4),
    "7.0 place-relative, skewed": Variant("new", 3, "place", align=4, skew=4),
    "7.0 relative, aligned to 4": Variant("new", 3, "relative", align=4, skew=4),
    "6.12 32-bit": Variant("new", 3, "relative", align=4, base=0xC0008000),
    "4.19 32-bit absolute": Variant("old", 0, "absolute", align=4, wide=False, base=0xC0008000),
    "6.12 big-endian": Variant("new", 3, "relative", byteorder=">"),
    "6.1 big-endian per-CPU": Variant("old", 0, "percpu", byteorder=">"),
}

Listing = list[tuple[str, int, str]]


def make_symbols(variant: Variant, count: int = 2900) -> Listing:
    """Invented symbols in address order, as /proc/kallsyms would list them."""
    random_ = random.Random(count)
    words = ["sys", "tcp", "ext4", "init", "lock", "page", "Alloc", "free", "dev", "0", "1x", "q"]
    symbols: Listing = []
    if variant.addresses == "percpu" or (
        variant.order == "old" and variant.addresses == "absolute"
    ):
        symbols += [
            (f"percpu_{number}", number * 16, "A")
            for number in range(0 if variant.base < 1 << 32 else 40)
        ]
    address = variant.base
    symbols += [("_text", address, "T"), ("_stext", address, "T")]
    for number in range(count):
        address += random_.randrange(0, 0x80) * 16
        name = "_".join(random_.choices(words, k=3)) + f"_{number % 900}"
        if variant.wide and number % 400 == 7:
            name += "".join(
                random_.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789", k=300)
            )
        symbols.append((name, address, random_.choice("TtDdBbRr")))
    symbols += [("0123456789", address, "t"), ("_end", address + 0x1000, "B")]
    return symbols


def make_tokens(symbols: Listing) -> list[bytes]:
    """256 tokens: the characters that occur, the rest common pieces of names."""
    texts = [kind + name for name, _, kind in symbols]
    used = set("".join(texts))
    pieces: Counter[str] = Counter()
    for text in texts[:: max(1, len(texts) // 600)]:
        for size in (2, 3, 4, 5, 6):
            pieces.update(text[i : i + size] for i in range(len(text) - size + 1))
    common = iter(sorted(pieces, key=lambda piece: -pieces[piece] * (len(piece) - 1)))
    return [bytes([c]) if chr(c) in used else next(common, "").encode() for c in range(256)]


def compress(text: str, tokens: dict[str, int]) -> bytes:
    out, position = bytearray(), 0
    while position < len(text):
        size = next(n for n in (6, 5, 4, 3, 2, 1) if text[position : position + n] in tokens)
        out.append(tokens[text[position : position + size]])
        position += size
    return bytes(out)


class _Writer:
    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.data = bytearray(random.Random(3).randbytes(NOISE).replace(b"\0", b"\1"))
        self.data += b"\1" * variant.skew
        self.at: dict[str, int] = {}

    def label(self, name: str) -> None:
        self.data += bytes(-len(self.data) % self.variant.align)
        self.at[name] = len(self.data)

    def pack(self, code: str, *values: int) -> None:
        self.data += struct.pack(f"{self.variant.byteorder}{len(values)}{code}", *values)


def _write_addresses(out: _Writer, symbols: Listing) -> None:
    variant, base = out.variant, out.variant.base
    values = [address for _, address, _ in symbols]
    if variant.addresses == "absolute":
        out.label("kallsyms_addresses")
        out.pack(variant.pointer, *values)
        return
    out.label("kallsyms_offsets")
    if variant.addresses == "percpu":
        out.pack("i", *(v if v < base else base - 1 - v for v in values))
    elif variant.addresses == "relative":
        out.pack("I", *(v - base for v in values))
    else:
        start = base + len(out.data)
        out.pack("i", *(v - start - 4 * i for i, v in enumerate(values)))
        return
    out.label("kallsyms_relative_base")
    out.pack(variant.pointer, base)


def _write_names(out: _Writer, symbols: Listing, tokens: list[bytes]) -> None:
    out.label("kallsyms_num_syms")
    if out.variant.marker_size == 8:
        out.pack("Q", len(symbols))
    else:
        out.pack("I", len(symbols))
    codes = {token.decode(): code for code, token in enumerate(tokens) if token}
    names, markers = bytearray(), []
    for number, (name, _, kind) in enumerate(symbols):
        if number % 256 == 0:
            markers.append(len(names))
        record = compress(kind + name, codes)
        if len(record) > 0x7F and out.variant.wide:
            names += bytes([len(record) & 0x7F | 0x80, len(record) >> 7])
        else:
            names.append(len(record))
        names += record
    out.label("kallsyms_names")
    out.data += names
    out.label("kallsyms_markers")
    out.pack("Q" if out.variant.marker_size == 8 else "I", *markers)


def _write_seqs(out: _Writer, count: int) -> None:
    if out.variant.seqs:
        out.label("kallsyms_seqs_of_names")
        order = random.Random(5).sample(range(count), count)
        out.data += b"".join(number.to_bytes(3, "big") for number in order)


def _write_tokens(out: _Writer, tokens: list[bytes]) -> None:
    out.label("kallsyms_token_table")
    index, position = [], 0
    for token in tokens:
        index.append(position)
        out.data += token + b"\0"
        position += len(token) + 1
    out.label("kallsyms_token_index")
    out.pack("H", *index)


def make_image(
    variant: Variant, symbols: Listing, tokens: list[bytes] | None = None
) -> tuple[bytearray, dict[str, int]]:
    """A kernel image (noise, then the tables, then noise), and the offset of each table."""
    tokens = tokens or make_tokens(symbols)
    out = _Writer(variant)
    if variant.order == "old":
        _write_addresses(out, symbols)
        _write_names(out, symbols, tokens)
        _write_seqs(out, len(symbols))
        _write_tokens(out, tokens)
    else:
        _write_names(out, symbols, tokens)
        _write_tokens(out, tokens)
        _write_addresses(out, symbols)
        _write_seqs(out, len(symbols))
    out.label("end")
    out.data += random.Random(4).randbytes(NOISE)
    return out.data, out.at
