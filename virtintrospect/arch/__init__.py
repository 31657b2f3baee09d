"""Page-table formats as data, and the one walker that serves them all."""

from virtintrospect.arch.paging import Level, PagingMode, Step, Walk, walk
from virtintrospect.arch.x86 import X86_64_4LEVEL, X86_64_5LEVEL, X86_LEGACY, X86_PAE

__all__ = [
    "X86_64_4LEVEL",
    "X86_64_5LEVEL",
    "X86_LEGACY",
    "X86_PAE",
    "Level",
    "PagingMode",
    "Step",
    "Walk",
    "walk",
]
