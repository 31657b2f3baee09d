"""Guest-physical memory and the file formats that hold it."""

from virtintrospect.memory.base import Mapped, PhysicalMemory, Region

__all__ = ["Mapped", "PhysicalMemory", "Region"]
