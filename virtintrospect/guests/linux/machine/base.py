"""What a kernel's architecture decides, as far as it takes part in finding the kernel."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.arch import PagingMode
from virtintrospect.driver import Target
from virtintrospect.errors import CorruptDataError
from virtintrospect.memory import PhysicalMemory
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.table import Symbols


class KernelMapping(NamedTuple):
    """Where the kernel's image lies, and a top table that says so."""

    mode: PagingMode
    root: int
    #: The image: its first byte (``_text``) to the end of what is mapped of it.
    image: LinearRange
    #: Which way it was found, as shown to people.
    found_by: str
    #: Whose kernel it is.
    machine: Machine


class Machine(abc.ABC):
    """One architecture's kernels. Has no state: there is one of each for all guests."""

    #: As ``uname -m`` says, or the common part of it.
    name: str = ""
    #: As targets name it (:attr:`~virtintrospect.driver.Target.architecture`).
    architectures: frozenset[str] = frozenset()
    #: Ways in that :meth:`quick` and :meth:`thorough` try, for the message when all fail.
    quick_ways: str = ""
    thorough_ways: str = ""
    #: :attr:`KernelMapping.found_by` of a way that never finds the kernel of an earlier boot;
    #: empty where there is none.
    certain: str = ""
    #: Where machines of this architecture have their RAM, when it does not begin at zero.
    ram_starts: tuple[int, ...] = ()
    #: Where kernels are linked to run when KASLR does not move them; ``None`` where that
    #: differs from kernel to kernel.
    link_base: int | None = None
    #: Addresses from here on can be code of the kernel: its image and modules.
    lowest_code: int = 1 << 63

    @abc.abstractmethod
    def quick(self, target: Target) -> Iterator[KernelMapping]:
        """Places where a kernel may be, by ways that cost the same however large the guest."""

    @abc.abstractmethod
    def thorough(self, target: Target) -> Iterator[KernelMapping]:
        """More places, by ways whose cost grows with the guest's memory."""

    @abc.abstractmethod
    def maps(self, memory: PhysicalMemory, mapping: KernelMapping) -> bool:
        """Whether the top table still leads to the image, where it was.

        :raises FaultError: a table lies outside of memory.
        """

    @abc.abstractmethod
    def read_only_data(self, memory: PhysicalMemory, mapping: KernelMapping) -> list[LinearRange]:
        """The parts of the image where kallsyms and BTF are: neither written nor executed.

        A kernel that does not protect them gives the whole image.
        """

    def kernel_root(
        self,
        symbols: Symbols,  # noqa: ARG002
        image: AddressSpace,  # noqa: ARG002
        mapping: KernelMapping,
    ) -> int:
        """Physical address of the kernel's own top table; ``image`` can read the image only.

        The one by which it was found, where an architecture's kernels have no other.

        :raises NotFoundError: a symbol is missing.
        :raises FaultError: it does not lie in the image.
        """
        return mapping.root

    @abc.abstractmethod
    def direct_map(
        self, symbols: Symbols, image: AddressSpace, mapping: KernelMapping
    ) -> LinearRange | None:
        """The direct map of all RAM, as computed; whoever uses it checks it against the tables."""

    @abc.abstractmethod
    def page_array(self, guest: LinuxGuest, size: int) -> int:
        """Address of the ``struct page`` of page frame 0, were there one (``pfn_to_page()``).

        :param size: bytes of a ``struct page``.
        :raises CorruptDataError: it cannot be told.
        """

    @abc.abstractmethod
    def vmalloc_size(self, guest: LinuxGuest) -> int | None:
        """Bytes of the vmalloc space (VMALLOC_TOTAL); ``None`` where that cannot be told."""

    def first_frame(self, guest: LinuxGuest) -> int:  # noqa: ARG002
        """The page frame that an array of all pages (CONFIG_FLATMEM) begins with."""
        return 0

    def modules_room(self, guest: LinuxGuest) -> range:  # noqa: ARG002
        """Addresses that modules have to themselves; none where they lie in the vmalloc space."""
        return range(0)

    def user_mode(self, mode: PagingMode) -> PagingMode:
        """The paging mode of a process's top table (``mm_struct.pgd``)."""
        return mode


def joined(pages: Iterable[LinearRange]) -> list[LinearRange]:
    """Runs of pages that follow each other, which must be sorted."""
    runs: list[LinearRange] = []
    for page in pages:
        if runs and runs[-1].end == page.start:
            runs[-1] = runs[-1]._replace(end=page.end)
        else:
            runs.append(page)
    return runs


def noted(guest: LinuxGuest, name: str) -> int:
    """A bound of the kernel's address space, by VMCOREINFO (AArch64 since 6.0, RISC-V since 6.1).

    :raises CorruptDataError: it has none.
    """
    info = guest.vmcoreinfo
    if info is None or f"NUMBER({name})" not in info.fields:
        raise CorruptDataError(f"the kernel does not note its {name} in VMCOREINFO", 0)
    return info.number(name)
