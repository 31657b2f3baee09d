"""What taints a kernel (Documentation/admin-guide/tainted-kernels.rst, kernel/panic.c)."""

from __future__ import annotations

TAINTS = (
    ("P", "a proprietary module was loaded"),
    ("F", "a module was loaded by force"),
    ("S", "the CPUs or the platform are out of specification"),
    ("R", "a module was removed by force"),
    ("M", "a machine check was reported"),
    ("B", "a page was released in a bad state"),
    ("U", "a user asked for it"),
    ("D", "the kernel has died: there was an oops or BUG"),
    ("A", "an ACPI table was overridden"),
    ("W", "the kernel issued a warning"),
    ("C", "a staging driver was loaded"),
    ("I", "a workaround for a bug in the firmware was applied"),
    ("O", "a module from outside of the kernel tree was loaded"),
    ("E", "an unsigned module was loaded"),
    ("L", "a soft lockup has occurred"),
    ("K", "the kernel was patched live"),
    ("X", "auxiliary taint of the distribution"),
    ("T", "the kernel was built with randomised structures"),
    ("N", "an in-kernel test was run"),
    ("J", "user space changed the kernel by a debug interface of fwctl"),
)
#: Bits of the mask by meaning.
DIED = 7


def letters(mask: int) -> str:
    """The letters of a taint mask."""
    return "".join(letter for bit, (letter, _) in enumerate(TAINTS) if mask >> bit & 1)


def sentences(mask: int) -> tuple[str, ...]:
    """Each taint with its letter and meaning; a bit that nobody knows is named by its number."""
    known = [f"{letter}: {text}" for bit, (letter, text) in enumerate(TAINTS) if mask >> bit & 1]
    strange = [f"bit {bit}" for bit in range(len(TAINTS), 64) if mask >> bit & 1]
    return (*known, *strange)
