"""The kernel's code, against its image as the package has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from virtintrospect.guests.linux.patchsites import patch_sites
from virtintrospect.insight.checks.probes import probed_places
from virtintrospect.insight.checks.rule import Hit, Rule
from virtintrospect.symbols.kernelimage import KernelImage, load

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from virtintrospect.insight.checks.context import Context

#: More code than a kernel has.
_LARGEST_TEXT = 256 << 20
#: Bytes that differ, for which functions are named.
_MOST_PLACES = 1 << 16
#: Functions that are named, and bytes of each that are shown.
_MOST, _SHOWN = 64, 16
_MASK = (1 << 64) - 1
#: Bytes that a probe rewrites: a breakpoint, or a jump.
_PROBE = 5


def changed(context: Context) -> Iterator[Hit]:
    """Functions whose code is not what the image has."""
    guest = context.guest
    if not context.options.images:
        return
    if guest.machine.name != "x86-64":
        context.cannot("kernel-text: only kernels for x86-64 can be compared")
        return
    images = (load(path) for path in context.options.images)
    image = next((one for one in images if one.build_id == guest.build_id), None)
    if image is None:
        context.cannot(
            f"kernel-text: none of the images is of this kernel, build id {guest.build_id.hex()}"
        )
        return
    yield from _differences(context, image)


def _differences(context: Context, image: KernelImage) -> Iterator[Hit]:
    import numpy as np

    guest = context.guest
    start, end = guest.symbols.address("_stext"), guest.symbols.address("_etext")
    size = end - start
    if not image.segments or not len(image.segments[0].data) // 8 < size <= _LARGEST_TEXT:
        context.cannot("kernel-text: the guest's symbols of its code do not fit the image")
        return
    slide = guest.symbols.address("_text") - image.segments[0].vaddr
    ours = np.frombuffer(image.read(start - slide, size), dtype=np.uint8)
    theirs, there = _text(context, start, size)
    if not there.all():
        context.cannot(f"kernel-text: {int((~there).sum())} bytes of the code are not in memory")
    sites = list(patch_sites(guest, image, slide))
    probes = np.array([place & _MASK for place in probed_places(context)], dtype=np.uint64).astype(
        np.int64
    )
    known = ~there | _marked(
        size,
        np.concatenate([*(one.starts for one in sites), probes]) - np.int64(_signed(start)),
        np.concatenate([*(one.sizes for one in sites), np.full(len(probes), _PROBE)]),
    )
    if (known & there).sum() > size // 4:  # some five percent of honest kernels
        context.cannot("kernel-text: by the guest's symbols it rewrites more than kernels do")
        return
    odd = (ours != theirs) & ~known
    places = np.flatnonzero(odd & ~_relocated(ours, theirs, odd, slide))
    yield from _functions(context, start, places, ours, theirs)


def _text(
    context: Context, start: int, size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """The code as it is in memory, and which bytes of it are there."""
    import numpy as np

    found = np.zeros(size, dtype=np.uint8)
    there = np.zeros(size, dtype=bool)
    for vaddr, piece in context.guest.kernel.read_available(start, size):
        at = vaddr - start
        found[at : at + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        there[at : at + len(piece)] = True
    return found, there


def _signed(address: int) -> int:
    return address - (1 << 64) if address >> 63 else address


def _marked(
    size: int, places: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which of ``size`` bytes lie in some place."""
    import numpy as np

    # Steps up where a place begins and down where it ends: their sum is above 0 inside.
    fit = (places >= 0) & (places < size)
    ups, downs = places[fit], np.minimum(places[fit] + sizes[fit], size)
    steps = np.bincount(ups, minlength=size + 1) - np.bincount(downs, minlength=size + 1)
    inside: npt.NDArray[np.bool_] = np.cumsum(steps.astype(np.int32), dtype=np.int32)[:-1] > 0
    return inside


def _relocated(
    ours: npt.NDArray[np.uint8],
    theirs: npt.NDArray[np.uint8],
    odd: npt.NDArray[np.bool_],
    slide: int,
) -> npt.NDArray[np.bool_]:
    """Bytes that belong to a number of 32 bits that differs by the slide alone.

    That is what KASLR does to addresses in code (arch/x86/boot/compressed/misc.c), and the
    opposite to offsets from per-CPU variables. What is 64 bits wide has the same upper half.
    """
    import numpy as np

    found = np.zeros(len(ours), dtype=bool)
    if not slide:
        return found
    for back in range(4):
        at = np.flatnonzero(odd) - back
        at = at[(at >= 0) & (at + 4 <= len(ours))]
        whole = [
            sum(side[at + byte].astype(np.uint32) << np.uint32(8 * byte) for byte in range(4))
            for side in (ours, theirs)
        ]
        change = whole[1] - whole[0]
        moved = (change == np.uint32(slide & 0xFFFFFFFF)) | (
            change == np.uint32(-slide & 0xFFFFFFFF)
        )
        for byte in range(4):
            found[at[moved] + byte] = True
    return found


def _functions(
    context: Context,
    start: int,
    places: npt.NDArray[np.intp],
    ours: npt.NDArray[np.uint8],
    theirs: npt.NDArray[np.uint8],
) -> Iterator[Hit]:
    """A hit for each function that has such a place."""
    functions: dict[bytes, list[int]] = {}
    for place in places[:_MOST_PLACES].tolist():
        span = context.guest.symbols.span(start + place)
        name = span[0].encode() if span else b"%#x" % (start + place)
        if name not in functions and len(functions) >= _MOST:
            context.cannot(f"kernel-text: more than {_MOST} functions differ, the rest is left out")
            break
        functions.setdefault(name, []).append(place)
    for name, where in functions.items():
        first = where[0]
        shown = slice(first, min(first + _SHOWN, len(ours)))
        yield Hit(
            b"code of " + name,
            b"%d bytes are not what the kernel's image has" % len(where),
            {
                "address": hex(start + first),
                "image": ours[shown].tobytes().hex(),
                "guest": theirs[shown].tobytes().hex(),
            },
        )


RULES = (
    Rule(
        id="kernel-text",
        severity="critical",
        title="The kernel's code was changed",
        looks_at="Every byte from _stext to _etext against the image given by --kernel-image, if "
        "it has the same build id. Left out are the places that the kernel rewrites itself, by "
        "the tables of the image: alternatives, paravirtual calls, static branches and calls, "
        "calls of ftrace, retpolines, returns, call depth, ENDBR, lock prefixes; and registered "
        "kprobes. A number of 32 bits may differ by the slide of KASLR, up or down.",
        remedy="Take the guest off the network and dump it. The evidence has the address and both "
        "versions: disassemble them.",
        false_positives="Live patches. A kernel of another build with the same build id.",
        blind="Only x86-64. What is written exactly into a place that the kernel rewrites, or "
        "into a registered probe's, is not seen: the rules ftrace-hook and kprobe look at who "
        "does so. Read-only data and modules are not compared, nor is code that only ran at boot.",
        reference="T1014",
        check=changed,
        needs="--kernel-image",
    ),
)
