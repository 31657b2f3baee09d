"""The configuration: one TOML file, every mistake in it told with its line."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtintrospect.errors import VirtIntrospectError

DEFAULT_PATH = Path("/etc/virtintrospect/config.toml")

#: A configuration larger than this is none.
_MAX_SIZE = 1 << 20


class ConfigError(VirtIntrospectError):
    """The configuration file has a mistake.

    :param line: where, counted from 1; 0 where no line is to blame.
    """

    exit_code = 2

    def __init__(self, path: Path, line: int, problem: str) -> None:
        where = f"{path}:{line}" if line else str(path)
        super().__init__(f"{where}: {problem}", hint="docs/operations.md lists all settings")
        self.line = line


def _number(default: float, least: float, most: float) -> Any:
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True, slots=True)
class Daemon:
    """``[daemon]``: where it keeps things, and how much it does at a time."""

    #: Sockets and lock file.
    run_dir: str = "/run/virtintrospect"
    #: Spool of the hook, history, reports, what was detached for good.
    state_dir: str = "/var/lib/virtintrospect"
    #: Threads that read guests, and so guests that are read at a time.
    workers: int = _number(4, 1, 64)
    #: debug, info, warning or error.
    log_level: str = field(
        default="info", metadata={"choices": ("debug", "info", "warning", "error")}
    )


@dataclass(frozen=True, slots=True)
class Libvirt:
    """``[libvirt]``: which libvirt, and how often it is asked."""

    #: Empty: as virsh would choose.
    uri: str = "qemu:///system"
    #: Seconds between two looks at the list of domains; events come at once.
    reconcile_seconds: float = _number(30.0, 0.1, 3600)


@dataclass(frozen=True, slots=True)
class Socket:
    """``[socket]``: who may ask, and how much."""

    #: Reading a guest's memory is being root in it: nobody else by default.
    users: tuple[str, ...] = ("root",)
    groups: tuple[str, ...] = ()
    connections: int = _number(64, 1, 10_000)
    #: Seconds without a request after which a connection is closed.
    idle_seconds: float = _number(60.0, 0.1, 86_400)
    #: Seconds that a client may take to read what it asked for.
    write_seconds: float = _number(10.0, 0.1, 3600)


@dataclass(frozen=True, slots=True)
class Sessions:
    """``[sessions]``: which domains, and how closely they are watched."""

    #: Shell patterns of names, and UUIDs. What ``exclude`` names is never looked into.
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    #: Seconds between two looks at a ready guest: a new kernel, new lines of its log.
    poll_seconds: float = _number(2.0, 0.05, 3600)
    #: Share of a core that the daemon spends on one guest of its own accord, in percent.
    duty_percent: float = _number(5.0, 0.1, 100)
    #: Seconds after which a domain that is gone is no longer shown.
    keep_gone_seconds: float = _number(60.0, 0, 86_400)


@dataclass(frozen=True, slots=True)
class History:
    """``[history]``: figures of memory, CPU and pressure, kept for hints and graphs."""

    enabled: bool = True
    interval_seconds: float = _number(60.0, 0.1, 86_400)
    #: KiB of one domain's history; the older half goes when it is full.
    domain_kib: int = _number(512, 8, 1 << 20)
    #: MiB of all histories: those of the longest silent domains go first.
    total_mib: int = _number(64, 1, 1 << 20)


@dataclass(frozen=True, slots=True)
class Triage:
    """``[triage]``: what is written when a guest crashes."""

    enabled: bool = True
    #: Reports that are kept; the oldest go first.
    reports: int = _number(50, 1, 100_000)


@dataclass(frozen=True, slots=True)
class Metrics:
    """``[metrics]``: for Prometheus. Needs the extra ``metrics`` (prometheus-client)."""

    enabled: bool = False
    address: str = "127.0.0.1"
    port: int = _number(9878, 0, 65_535)


@dataclass(frozen=True, slots=True)
class Metadata:
    """``[metadata]``: a summary in the domain's own XML. Needs a read-write connection."""

    publish: bool = False
    interval_seconds: float = _number(60.0, 0.1, 86_400)


@dataclass(frozen=True, slots=True)
class Govern:
    """``[govern]``: follow hints on memory by itself. Needs a read-write connection."""

    enabled: bool = False
    #: docs/hints.md: conservative, balanced, dense, or one of your own.
    policy: str = "balanced"
    interval_seconds: float = _number(60.0, 0.1, 86_400)
    #: How far back figures count.
    window_seconds: float = _number(3600.0, 1, 30 * 86_400)
    #: Memory is taken only while this host has less than so many MiB available.
    host_short_mib: int = _number(4096, 0, 1 << 30)
    #: Memory is taken only by hints that are so sure (0 to 1).
    least_confidence: float = _number(0.5, 0, 1)
    #: Seconds between two changes of one domain that take something.
    rest_seconds: float = _number(900.0, 0, 86_400)


@dataclass(frozen=True, slots=True)
class Config:
    """All of it."""

    daemon: Daemon = Daemon()
    libvirt: Libvirt = Libvirt()
    socket: Socket = Socket()
    sessions: Sessions = Sessions()
    history: History = History()
    triage: Triage = Triage()
    metrics: Metrics = Metrics()
    metadata: Metadata = Metadata()
    govern: Govern = Govern()

    @property
    def run_dir(self) -> Path:
        """Folder of the sockets."""
        return Path(self.daemon.run_dir)

    @property
    def state_dir(self) -> Path:
        """Folder of what lasts."""
        return Path(self.daemon.state_dir)


def load(path: Path | None) -> Config:
    """Read a configuration.

    :param path: ``None``: :data:`DEFAULT_PATH`, which may be missing.
    :raises ConfigError: says which line is wrong, and how.
    """
    where = path or DEFAULT_PATH
    try:
        with where.open("rb") as file:
            raw = file.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        if path is None:
            return Config()
        raise ConfigError(where, 0, "no such file") from None
    except OSError as error:
        raise ConfigError(where, 0, str(error.strerror)) from error
    if len(raw) > _MAX_SIZE:
        raise ConfigError(where, 0, "larger than 1 MiB")
    try:
        return parse(raw.decode(), where)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(where, line, "not UTF-8") from error


def parse(text: str, path: Path) -> Config:
    """A configuration from its text; ``path`` is for the messages.

    :raises ConfigError: as :func:`load`.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"^(.*) \(at line (\d+), column \d+\)$", str(error))
        line = int(found[2]) if found else text.count("\n") + 1
        reason = found[1] if found else re.sub(r" \(at end of document\)$", "", str(error))
        raise ConfigError(path, line, reason) from error
    except RecursionError as error:
        raise ConfigError(path, 0, "nested too deeply") from error
    reader = _Reader(text, path)
    sections = {item.name: item.default for item in dataclasses.fields(Config)}
    values = {}
    for name, content in tree.items():
        if name not in sections:
            raise reader.error(name, "", f"no section [{name}]; there are {', '.join(sections)}")
        if not isinstance(content, dict):
            raise reader.error(name, "", f"[{name}] is a section, not a value")
        values[name] = reader.section(name, type(sections[name]), content)
    return Config(**values)


class _Reader:
    """Checks values against the declaration of their section."""

    def __init__(self, text: str, path: Path) -> None:
        self.lines = text.splitlines()
        self.path = path

    def section(self, name: str, kind: type, content: dict[str, Any]) -> Any:
        fields = {item.name: item for item in dataclasses.fields(kind)}
        values = {}
        for key, value in content.items():
            if key not in fields:
                known = ", ".join(fields)
                raise self.error(name, key, f"[{name}] has no setting {key!r}; it has {known}")
            values[key] = self.value(name, fields[key], value)
        return kind(**values)

    def value(self, section: str, item: dataclasses.Field[Any], value: Any) -> Any:
        name = item.name
        default = item.default
        if isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise self.error(section, name, f"{name} must be a list of strings")
            return tuple(value)
        if isinstance(default, bool) or isinstance(value, bool):
            fits = isinstance(default, bool) and isinstance(value, bool)
        elif isinstance(default, float):
            fits = isinstance(value, int | float)
        else:
            fits = isinstance(value, type(default))
        if not fits:
            wanted = {bool: "true or false", str: "a string", int: "an integer", float: "a number"}
            raise self.error(section, name, f"{name} must be {wanted[type(default)]}")
        limits = item.metadata
        if "least" in limits and not limits["least"] <= value <= limits["most"]:
            wanted_range = f"from {limits['least']} to {limits['most']}"
            raise self.error(section, name, f"{name} must be {wanted_range}, not {value}")
        if "choices" in limits and value not in limits["choices"]:
            raise self.error(section, name, f"{name} must be one of {', '.join(limits['choices'])}")
        return value

    def error(self, section: str, key: str, problem: str) -> ConfigError:
        return ConfigError(self.path, self._line(section, key), problem)

    def _line(self, section: str, key: str) -> int:
        """Line of a section or of a key in it, as people write them; 0 where it is hidden."""
        inside = start = 0
        for number, line in enumerate(self.lines, 1):
            head = re.match(r"\s*\[+\s*([^\].]+?)\s*\]", line)
            if head:
                inside = head[1].strip("\"'") == section
                start = start or (number if inside else 0)
            word = re.match(r"\s*(?:(\w+)\s*\.\s*)?[\"']?([\w-]+)[\"']?\s*[.=]", line)
            if word and key and word[2] == key and (inside or word[1] == section):
                return number
            if word and not inside and word[2] == section:
                start = start or number
        return start
