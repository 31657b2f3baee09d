"""Acquisition: a guest's memory, live or an image, into a file that other tools read, too."""

from virtintrospect.acquire.copy import Progress, dump
from virtintrospect.acquire.layout import FORMATS
from virtintrospect.acquire.source import Origin, origin_of

__all__ = ["FORMATS", "Origin", "Progress", "dump", "origin_of"]
