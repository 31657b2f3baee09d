"""What can be searched for: bytes, text, regular expressions, YARA rules.

The bytes that are searched are a stranger's: no pattern may take more time on some bytes than
on others. Bytes and text are strings of fixed length. Regular expressions are RE2's, which takes
linear time whatever it reads; Python's own may take for ever.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from virtintrospect.errors import UsageError, VirtIntrospectError

#: What a pattern may be.
KINDS = ("text", "hex", "regex", "yara")

#: A match that is longer is cut where a piece of memory ends.
LONGEST = 4096
#: Seconds that YARA may spend on one piece; its own regular expressions can be slow.
_YARA_SECONDS = 60
_EXTRA = "pip install 'virtintrospect[search]'"


class Found(NamedTuple):
    """Where in some bytes a pattern is, and which one of several."""

    start: int
    end: int
    name: str


class Pattern(abc.ABC):
    """Finds itself in bytes."""

    @abc.abstractmethod
    def find(self, data: bytes) -> Iterator[Found]:
        """Every place, in rising order of their starts."""


class Literal(Pattern):
    """One of several byte strings."""

    def __init__(self, strings: dict[str, bytes]) -> None:
        self._strings = strings

    def find(self, data: bytes) -> Iterator[Found]:  # noqa: D102 (inherited)
        found = []
        for name, string in self._strings.items():
            at = data.find(string)
            while at >= 0:
                found.append(Found(at, at + len(string), name))
                at = data.find(string, at + len(string))
        yield from sorted(found)


class Compiled(Pattern):
    """What an object with ``finditer`` finds, as those of :mod:`re` and RE2 do.

    :param names: names of the expression's groups, by number; the group that took part names
        the match.
    """

    def __init__(self, compiled: Any, names: tuple[str, ...]) -> None:
        self._compiled = compiled
        self._names = names

    def find(self, data: bytes) -> Iterator[Found]:  # noqa: D102 (inherited)
        for match in self._compiled.finditer(data):
            if match.end() > match.start():  # nothing is everywhere
                name = self._names[(match.lastindex or 1) - 1] if len(self._names) > 1 else ""
                yield Found(match.start(), match.end(), name or self._names[0])


class Yara(Pattern):
    """YARA rules: every place of a string of a rule that holds for a piece of memory."""

    def __init__(self, rules: Any, errors: Any) -> None:
        self._rules = rules
        self._errors = errors

    def find(self, data: bytes) -> Iterator[Found]:  # noqa: D102 (inherited)
        try:
            matches = self._rules.match(data=data, timeout=_YARA_SECONDS)
        except self._errors as error:
            raise VirtIntrospectError(f"YARA: {error}") from error
        found = [
            Found(place.offset, place.offset + place.matched_length, f"{rule}:{string.identifier}")
            for rule in matches
            for string in rule.strings
            for place in string.instances
        ]
        yield from sorted(found)


def compile_pattern(
    pattern: str | bytes, kind: str = "text", *, ignore_case: bool = False
) -> Pattern:
    """Make a pattern out of what the user wrote.

    :param pattern: text (searched as UTF-8 and as UTF-16); with ``hex`` pairs of digits, a
        pair of question marks standing for any byte; with ``regex`` an expression of RE2's; with
        ``yara`` the path of a file with rules. Bytes stand for themselves.
    :param kind: one of :data:`~virtintrospect.insight.patterns.KINDS`.
    :param ignore_case: of ASCII letters, in text and regular expressions.
    :raises UsageError: that is no such pattern, or a library is missing.
    """
    if kind not in KINDS:
        raise UsageError(f"no kind of pattern: {kind!r}", hint=f"there are: {', '.join(KINDS)}")
    if ignore_case and kind in ("hex", "yara"):
        raise UsageError(f"{kind} has no upper and lower case to ignore")
    if not pattern:
        raise UsageError("the pattern is empty")
    if isinstance(pattern, bytes) and kind != "regex":
        return _literal({"bytes": pattern}, ignore_case)
    makers: dict[str, Callable[[Any, bool], Pattern]] = {
        "text": _text, "hex": _hex, "regex": _regex, "yara": _yara,
    }  # fmt: skip
    return makers[kind](pattern, ignore_case)


def _text(pattern: str, ignore_case: bool) -> Pattern:
    try:
        strings = {"utf-8": pattern.encode(), "utf-16": pattern.encode("utf-16-le")}
    except UnicodeEncodeError as error:
        raise UsageError(f"no text: {pattern!r}", hint="bytes are searched with --hex") from error
    return _literal(strings, ignore_case)


def _literal(strings: dict[str, bytes], ignore_case: bool) -> Pattern:
    for string in strings.values():
        if len(string) > LONGEST:
            raise UsageError(f"patterns have up to {LONGEST} bytes, this one has {len(string)}")
    if not ignore_case:
        return Literal(strings)
    groups = b"|".join(b"(" + re.escape(string) + b")" for string in strings.values())
    return Compiled(re.compile(groups, re.IGNORECASE), tuple(strings))


def _hex(pattern: str, _: bool) -> Pattern:
    digits = "".join(pattern.split())
    pairs = [digits[at : at + 2] for at in range(0, len(digits), 2)]
    if not pairs or any(not re.fullmatch(r"[0-9A-Fa-f]{2}|\?\?", pair) for pair in pairs):
        raise UsageError(
            f"no bytes: {pattern!r}", hint="write pairs of digits, ?? for any byte: 'de ad ?? ef'"
        )
    if len(pairs) > LONGEST:
        raise UsageError(f"patterns have up to {LONGEST} bytes, this one has {len(pairs)}")
    if "??" not in pairs:
        return Literal({"bytes": bytes.fromhex(digits)})
    if set(pairs) == {"??"}:
        raise UsageError(f"{pattern!r} is everywhere", hint="give one byte at least")
    parts = [b"." if pair == "??" else re.escape(bytes.fromhex(pair)) for pair in pairs]
    return Compiled(re.compile(b"".join(parts), re.DOTALL), ("bytes",))


def _regex(pattern: str | bytes, ignore_case: bool) -> Pattern:
    try:
        import re2
    except ImportError as error:
        raise UsageError("regular expressions need google-re2", hint=_EXTRA) from error
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not ignore_case
    raw = pattern if isinstance(pattern, bytes) else pattern.encode()
    try:
        return Compiled(re2.compile(raw, options), ("regex",))
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise UsageError(
            f"no regular expression: {text}",
            hint="the syntax is RE2's: no back references, no look-around",
        ) from error


def _yara(path: str, _: bool) -> Pattern:
    try:
        import yara
    except ImportError as error:
        raise UsageError("YARA rules need yara-python", hint=_EXTRA) from error
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no UTF-8"
        raise UsageError(f"cannot read the rules {path}: {why}") from error
    try:
        return Yara(yara.compile(source=source), yara.Error)
    except yara.Error as error:
        raise UsageError(f"{path}: {error}") from error
