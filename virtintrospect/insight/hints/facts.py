"""What a rule of hints may look at, and how it makes a hint of it."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.domain import Domain
from virtintrospect.domainxml import (
    current_memory,
    mergeable,
    number_of,
    parse_xml,
    shared,
    size_of,
)
from virtintrospect.insight.history import Window
from virtintrospect.insight.policy import Policy
from virtintrospect.model import Hint

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MIB = 1 << 20

#: Names that virsh takes for an id, a UUID or an option.
_NOT_TAKEN_FOR_NAMES = re.compile(r"-|[0-9]+$|[0-9A-Fa-f -]{32,}$")

#: Numbers that a hint comes from; those that are not known are left out.
Evidence = dict[str, float | int | str | None]


class Identical(NamedTuple):
    """Pages of a guest that others are the same as, in bytes; estimated from a sample."""

    #: Of all that are the same as some other page of the guests looked at, less one of each.
    size: int
    #: Of those that another guest has, too.
    shared: int
    #: Pages that hold nothing but zeros.
    zero: int
    #: Pages of which a piece was looked at, and that were read whole.
    looked_at: int
    hashed: int


@dataclass(frozen=True)
class Facts:
    """One guest, and what is known of it.

    :param window: its figures over time.
    :param policy: thresholds.
    :param domain: the libvirt domain, where there is one.
    :param held: bytes of this host's memory that hold pages which the guest has free.
    :param whole: bytes of aligned pieces of 2 MiB that the guest uses, and the host has, wholly.
    :param identical: pages that could be one with others, as KSM merges them.
    :param timers: who lets himself be woken so often, where that was looked up.
    """

    window: Window
    policy: Policy
    domain: Domain | None = None
    held: int | None = None
    whole: int | None = None
    identical: Identical | None = None
    timers: tuple[str, ...] = ()

    @property
    def stale(self) -> bool:
        """Whether the newest figures are too old to take something away by them."""
        return self.window.age > self.policy.stale_seconds

    @property
    def calm(self) -> bool:
        """Whether nothing speaks against taking memory away."""
        policy = self.policy
        stalled = self.window.stalled("memory", "some") or 0.0
        refaults = self.window.rate("events", "refault") or 0.0
        return (
            stalled <= policy.shrink_most_stalled_percent
            and refaults <= policy.shrink_most_refaults
        )

    @property
    def current(self) -> int | None:
        """Bytes that the balloon leaves the guest."""
        kib = current_memory(self.domain.xml) if self.domain else None
        return None if kib is None else kib << 10

    @property
    def maximum(self) -> int | None:
        """Bytes that the guest was started with: the most that the balloon can give back."""
        return size_of(self._root.find("memory")) or None

    @property
    def has_balloon(self) -> bool:
        """Whether the domain has a balloon device, and the guest a driver for it."""
        found = self._root.find("devices/memballoon")
        driver = self.window.last("drivers", "balloon")
        return found is not None and found.get("model") not in (None, "none") and driver != 0

    @property
    def reports_free_pages(self) -> bool:
        """Whether the guest tells the host of its free pages by itself."""
        return self._root.find("devices/memballoon[@freePageReporting='on']") is not None

    @property
    def vcpus(self) -> tuple[int, int] | None:
        """VCPUs that are plugged in, and how many there may be."""
        element = self._root.find("vcpu")
        most = None if element is None else number_of(element.text)
        if element is None or most is None:
            return None
        return number_of(element.get("current")) or most, most

    @property
    def shared(self) -> bool:
        """Whether its memory is a file that others may map, too, not QEMU's own."""
        return shared(self._root.find("memoryBacking"))

    @property
    def mergeable(self) -> bool:
        """Whether KSM may merge its pages: those of its own, in small pages, where it is let."""
        return self.domain is not None and mergeable(self.domain.xml)

    @property
    def has_numa(self) -> bool:
        """Whether the guest itself has NUMA nodes, or libvirt was told where its memory goes."""
        places = "cpu/numa", "numatune/memory[@mode]"
        return any(self._root.find(place) is not None for place in places)

    @property
    def quota(self) -> float | None:
        """CPUs' worth of time that control groups of the host give all of its vCPUs together."""
        return self.window.here.last("vmm", "limits", "cpus_max")

    @property
    def allowed_cpus(self) -> float | None:
        """On how many CPUs of the host its vCPUs may run: the most of any of them."""
        series = self.window.here.named("vcpus", key=1, value=3)
        return max((values[-1] for values in series.values()), default=None)

    @property
    def memory_room(self) -> int | None:
        """Most bytes that a control group of the host leaves for the guest's memory.

        What QEMU has besides the guest's memory is taken off.
        """
        here = self.window.here
        limit = here.last("vmm", "limits", "memory_max")
        if limit is None:
            return None
        resident, maximum = here.last("vmm", "resident") or 0.0, self.maximum
        extra = 0.0 if maximum is None else max(0.0, resident - maximum)
        return max(0, int(limit - extra))

    @property
    def unpluggable(self) -> int:
        """VCPUs that can be taken from the guest while it runs; those it started with cannot."""
        return len(self._root.findall("vcpus/vcpu[@enabled='yes'][@hotpluggable='yes']"))

    def virsh(self, command: str, *arguments: str) -> str | None:
        """The command line that an operator would type."""
        if self.domain is None:
            return None
        name = self.domain.name
        if _NOT_TAKEN_FOR_NAMES.match(name):
            name = self.domain.uuid
        words = ["virsh", "-c", self.domain.uri, command, name, *arguments]
        return shlex.join(words)

    def hint(
        self,
        resource: str,
        action: str,
        reason: str,
        evidence: Evidence,
        refuted_by: str,
        *,
        current: int | None = None,
        recommended: int | None = None,
        virsh: str | None = None,
    ) -> Hint:
        """A hint, its confidence by how much the window holds."""
        numbers = [
            f"{name}={_short(value)}" for name, value in evidence.items() if value is not None
        ]
        numbers += [f"seconds={_short(self.window.seconds)}", f"samples={len(self.window)}"]
        return Hint(
            resource=resource,
            action=action,
            current=current,
            recommended=recommended,
            virsh=virsh,
            reason=reason,
            evidence=tuple(numbers),
            confidence=self.confidence,
            refuted_by=refuted_by,
        )

    @property
    def confidence(self) -> float:
        """How far samples and time suffice, 0.1 to 1."""
        policy = self.policy
        samples = len(self.window) / max(1, policy.full_samples)
        seconds = self.window.seconds / max(1.0, policy.full_seconds)
        return round(max(0.1, math.sqrt(min(1.0, samples) * min(1.0, seconds))), 2)

    @cached_property
    def _root(self) -> Element:
        return parse_xml(self.domain.xml if self.domain else "")


def size(count: float) -> str:
    """Bytes for a sentence."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 10 * (1 << 30) else f"{count / MIB:.0f} MiB"


def _short(value: float | int | str) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1e6
        else str(int(value) if isinstance(value, float) else value)
    )
