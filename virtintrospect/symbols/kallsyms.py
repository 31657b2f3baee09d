"""kallsyms: the symbol table that a Linux kernel carries in its own image.

Nothing has to be known beforehand: the tables are recognised by their structure, in every form
that scripts/kallsyms.c has given them.

=============  ==========================================================================
since          change
=============  ==========================================================================
2.6.10         names compressed with a table of 256 tokens
4.6            addresses as 32-bit offsets from ``kallsyms_relative_base``
               (KALLSYMS_BASE_RELATIVE); with KALLSYMS_ABSOLUTE_PERCPU an offset that is not
               negative is an absolute value, a negative one counts down from base - 1
4.20           markers have 32 bits on all machines (before: one pointer)
6.1            a name of 128 bytes or more has a length of two bytes (ULEB128)
6.2            ``kallsyms_seqs_of_names``, between markers and token table until 6.3
6.4            the addresses moved from before the names to behind the token index
6.15           no KALLSYMS_ABSOLUTE_PERCPU on x86 any more
7.0            offsets count from their own place; no relative base; everything is aligned to
               4 bytes (seen in Debian's 7.2)
=============  ==========================================================================

Order until 6.3: addresses, relative base, count, names, markers, (seqs), tokens, token index;
since 6.4: count, names, markers, tokens, token index, addresses, relative base, seqs.

The guest may have forged all of it. Every count and length is bounded before anything is
allocated, and tables are accepted only if they agree with one another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import GuestNotRecognisedError
from virtintrospect.symbols.index import build_index
from virtintrospect.symbols.kallsyms_expand import expand
from virtintrospect.symbols.kallsyms_names import Names, Tokens, find_names, find_tokens
from virtintrospect.symbols.table import IMAGE_ABOVE, IMAGE_BELOW, SymbolTable
from virtintrospect.symbols.vmcoreinfo import VmCoreInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.int64]


#: Seconds after which look-alikes are no longer tried; the right tables take 0.2.
_PATIENCE = 20.0


class AddressFormat(StrEnum):
    """How the address table is written."""

    ABSOLUTE = "absolute"
    RELATIVE = "relative"
    PERCPU = "relative, per-CPU absolute"
    PLACE = "place-relative"


@dataclass(frozen=True)
class KallsymsTables:
    """Where the tables are, in bytes from the start of the image, and how they are written."""

    base: int
    num_syms: int
    num_syms_offset: int
    names: int
    names_end: int
    markers: int
    markers_size: int
    token_table: int
    token_index: int
    addresses: int
    address_format: AddressFormat
    relative_base: int
    byteorder: str
    starts: Any = field(repr=False, compare=False)
    values: Any = field(repr=False, compare=False)

    def sources(self, image: memoryview | bytes) -> list[tuple[int, memoryview]]:
        """Regions (offset from the base, content) that fix every symbol of this build.

        They hold no relocated pointer, so they are the same in every guest on this kernel.
        Where a relocated pointer adds to the result (absolute addresses; a relative base other
        than the image's own), these regions cannot vouch for it: then there are none, and the
        symbols must not be cached.

        :param image: the copy of the image that the tables were found in.
        """
        relative = self.address_format in (AddressFormat.RELATIVE, AddressFormat.PERCPU)
        if self.address_format is AddressFormat.ABSOLUTE or (
            relative and self.relative_base != self.base
        ):
            return []
        view = memoryview(image).cast("B")
        regions = (
            (self.num_syms_offset, 4),
            (self.names, self.names_end - self.names),
            (self.markers, self.markers_size),
            (self.token_table, self.token_index + 512 - self.token_table),
            (self.addresses, 4 * self.num_syms),
        )
        return [(start, view[start : start + size]) for start, size in regions]


def find_tables(
    image: memoryview | bytes, base: int, *, vmcoreinfo: VmCoreInfo | None = None
) -> KallsymsTables:
    """Find the kallsyms tables in a kernel image.

    :param image: a **private copy** of the image as it lies in guest memory (in a live window the
        guest could change what has been checked); what is absent reads as zeros.
    :param base: virtual address of its first byte (``_text``), the KASLR slide included.
    :param vmcoreinfo: where given (and of 6.0 or later), it says where the token table is,
        which saves a search; the tables are checked all the same.
    :raises GuestNotRecognisedError: no consistent set of tables; the message names the step.
    """
    view = memoryview(image).cast("B")
    if not IMAGE_BELOW <= base < 1 << 64:
        raise GuestNotRecognisedError(f"kallsyms: no kernel has its image at {base:#x}")
    deadline = time.monotonic() + _PATIENCE
    failure = "no token table: no 256 strings of which the digits stand for themselves"
    for tokens in find_tokens(view, base, vmcoreinfo):
        failure = "token table found, but no markers and names that agree with each other"
        for names in find_names(view, tokens, 8 if base >> 32 else 4):
            failure = f"{names.num_syms} names found, but no addresses that agree with them"
            found = _find_addresses(view, base, tokens, names)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise GuestNotRecognisedError("kallsyms: too many things look like its tables")
    raise GuestNotRecognisedError(
        f"kallsyms: {failure}", hint="the kernel may lack CONFIG_KALLSYMS, or is not in memory yet"
    )


# Addresses.


def _find_addresses(
    view: memoryview, base: int, tokens: Tokens, names: Names
) -> KallsymsTables | None:
    pointer_size = 8 if base >> 32 else 4
    for offset, form, relative_base in _address_tables(view, tokens, names, pointer_size):
        values = _decode_addresses(
            view, base, offset, form, relative_base, names.num_syms, tokens.byteorder
        )
        if values is not None:
            return KallsymsTables(
                base, names.num_syms, names.num_syms_offset, names.start, names.end,
                names.markers, names.markers_size, tokens.table, tokens.index, offset, form,
                relative_base, tokens.byteorder, names.starts, values,
            )  # fmt: skip
    return None


def _address_tables(
    view: memoryview, tokens: Tokens, names: Names, pointer_size: int
) -> Iterator[tuple[int, AddressFormat, int]]:
    """Where the address table may be, with the relative base that would go with it."""
    order = "little" if tokens.byteorder == "<" else "big"
    # Right behind the token index, which is as aligned at its end as at its beginning.
    count, after = names.num_syms, tokens.index + 512

    def pointer(offset: int) -> int:
        return int.from_bytes(view[offset : offset + pointer_size], order)  # type: ignore[arg-type]

    for align in (pointer_size, 4):
        relative_base = -(-(after + 4 * count) // align) * align
        before = names.num_syms_offset - pointer_size
        ahead = before - -(-4 * count // align) * align
        for form in (AddressFormat.PERCPU, AddressFormat.RELATIVE):
            yield after, form, pointer(relative_base)
            if ahead >= 0:
                yield ahead, form, pointer(before)
    yield after, AddressFormat.PLACE, 0
    yield after, AddressFormat.ABSOLUTE, 0
    ahead = names.num_syms_offset - pointer_size * count
    if ahead >= 0:
        yield ahead, AddressFormat.ABSOLUTE, 0


def _decode_addresses(
    view: memoryview,
    base: int,
    offset: int,
    form: AddressFormat,
    relative_base: int,
    count: int,
    byteorder: str,
) -> Any:
    """Addresses (u64) of all symbols, or ``None`` where the table does not read that way."""
    import numpy as np

    width = (8 if base >> 32 else 4) if form is AddressFormat.ABSOLUTE else 4
    if offset + width * count > len(view):
        return None
    raw = view[offset : offset + width * count]
    mask = np.uint64((1 << 64) - 1 if base >> 32 else (1 << 32) - 1)
    if form is AddressFormat.ABSOLUTE:
        values = np.frombuffer(raw, f"{byteorder}u{width}").astype(np.uint64)
        return values if _plausible(values, base) else None
    counted = form is not AddressFormat.PLACE
    if counted and not base - IMAGE_BELOW <= relative_base < base + IMAGE_ABOVE:
        return None
    start = np.uint64(relative_base)
    if form is AddressFormat.RELATIVE:
        values = np.frombuffer(raw, f"{byteorder}u4").astype(np.uint64) + start
    else:
        signed = np.frombuffer(raw, f"{byteorder}i4").astype(np.int64)
        if form is AddressFormat.PLACE:
            places = np.arange(count, dtype=np.uint64) * np.uint64(4) + np.uint64(base + offset)
            values = signed.view(np.uint64) + places
        else:
            if not (signed < 0).any():
                return None
            down = start - np.uint64(1) - signed.view(np.uint64)
            values = np.where(signed < 0, down, signed.view(np.uint64))
    values &= mask
    return values if _plausible(values, base) else None


def _plausible(values: Any, base: int) -> bool:
    """Sorted, as the kernel's own bisection needs them, and beginning with the image."""
    import numpy as np

    if (values[1:] < values[:-1]).any():
        return False
    first = int(np.searchsorted(values, np.uint64(max(base - IMAGE_BELOW, 0))))
    last = int(np.searchsorted(values, np.uint64(min(base + IMAGE_ABOVE, (1 << 64) - 1))))
    # Most symbols are in the image (the others are per-CPU offsets), and its beginning has one.
    return last - first > len(values) // 2 and bool(int(values[first]) <= base + (2 << 20))


# Decoding.


def decode(image: memoryview | bytes, tables: KallsymsTables) -> SymbolTable:
    """Decode the tables that :func:`find_tables` found in the same image.

    :raises GuestNotRecognisedError: the names do not expand, or ``_text`` is not where the
        image begins.
    """
    import numpy as np

    view = memoryview(image).cast("B")
    blob, offsets = expand(view, tables)
    if blob.count(b"\0") != tables.num_syms:
        raise GuestNotRecognisedError(f"kallsyms: not {tables.num_syms} symbols, as announced")
    values = tables.values
    _check_anchor(blob, offsets, values, tables.base)
    bias = np.uint64(tables.base - IMAGE_BELOW)
    first = int(np.searchsorted(values, bias))
    last = int(np.searchsorted(values, np.uint64(min(tables.base + IMAGE_ABOVE, (1 << 64) - 1))))
    stored = values.copy()
    stored[first:last] -= bias
    return SymbolTable(
        names=memoryview(blob),
        offsets=memoryview(offsets.tobytes()),
        addresses=memoryview(stored.tobytes()),
        index=memoryview(build_index(part[1:] for part in blob.split(b"\0")[1:])),
        first_relative=first,
        end_relative=last,
    )


def _check_anchor(blob: bytes, offsets: Any, values: Any, base: int) -> None:
    """The image begins with ``_text``: that ties the table to it, whatever the guest claims.

    RISC-V's begins with ``_start`` and a header, and ``_text`` follows.
    """
    import numpy as np

    for name, slack in ((b"_start", 0), (b"_text", 0), (b"_stext", 2 << 20)):
        for kind in b"Tt":
            # The blob ends without a NUL, but its last symbol is never one of these.
            position = blob.find(b"\0%c%b\0" % (kind, name))
            if position < 0:
                continue
            address = int(values[int(np.searchsorted(offsets, position + 2))])
            if 0 <= address - base <= slack:
                return
            raise GuestNotRecognisedError(
                f"kallsyms: {name.decode()} is at {address:#x}, but the image at {base:#x}"
            )
    raise GuestNotRecognisedError("kallsyms: the symbols include neither _text nor _stext")
