"""QEMU's command line as data: ``key=value,…`` and JSON options."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from virtintrospect.errors import MemoryAccessError

#: No size has more digits; int() and float() refuse or round what has thousands.
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}(?:\.[0-9]{1,20})?)([bBkKmMgGtTpPeE]?)")
_SHIFTS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}

Options = dict[str, str]


class CommandLine:
    """The options of a QEMU process that say where its memory is.

    :param arguments: the whole command line, the program first.
    """

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments

    def all(self, option: str, *, implied: str = "") -> Iterator[Options]:
        """Every use of ``-option``, in order.

        :param implied: key of a first value that is written without one (``-machine q35``).
        """
        names = (f"-{option}", f"--{option}")
        arguments = iter(self._arguments[1:])
        # An option that takes no value here would swallow the next one, but none is asked for.
        for argument in arguments:
            if argument in names:
                yield parse_option(next(arguments, ""), implied)

    def merged(self, *options: str, implied: str = "") -> Options:
        """All uses of several spellings of one option; later values win, as in QEMU."""
        merged: Options = {}
        for option in options:
            for values in self.all(option, implied=implied):
                merged.update(values)
        return merged

    @property
    def architecture(self) -> str:
        """QEMU's name of the guest's architecture, by its program's: ``qemu-system-NAME``.

        Others (Fedora's ``qemu-kvm``, an old ``kvm``) have that of the host.
        """
        name = PurePosixPath(self._arguments[0] if self._arguments else "").name
        match = re.fullmatch(r"qemu-system-([a-z0-9_]+)", name)
        return match[1] if match else platform.machine()

    @property
    def machine(self) -> Options:
        """``-machine``, its type under ``type``."""
        return self.merged("M", "machine", implied="type")

    @property
    def objects(self) -> dict[str, Options]:
        """``-object``, by their ``id``, in order; the class under ``qom-type``."""
        found = {}
        for options in self.all("object", implied="qom-type"):
            if "id" in options:
                found[options["id"]] = options
        return found


def parse_option(text: str, implied: str = "") -> Options:
    """One option's value: JSON, or ``key=value`` pairs in which ``,,`` is a comma.

    JSON values become text; nested objects are left out, since nothing about memory nests.
    """
    if text.startswith("{"):
        try:
            decoded = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(decoded, dict):
            return {}
        return {key: _scalar(value) for key, value in decoded.items() if _is_scalar(value)}
    options: Options = {}
    for position, part in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            options[key] = value
        elif position == 0 and implied:
            options[implied] = key
        elif key:
            options[key] = "on"
    return options


def parse_size(text: str, *, unit: str = "b") -> int:
    """A size as QEMU writes it (``1048576k``, ``4G``, ``0x1000``), in bytes.

    :param unit: what a number without a suffix counts; ``-m`` counts MiB (``m``).
    :raises MemoryAccessError: it is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise MemoryAccessError(f"QEMU's command line holds {text[:64]!r} where a size belongs")
    number, suffix = match.groups()
    shift = _SHIFTS[(suffix or unit).lower()]
    if number[:2] in ("0x", "0X"):
        return int(number, 16) << shift
    if "." in number:
        return int(float(number) * (1 << shift))
    return int(number) << shift


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _scalar(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
