"""One host's part of a report, out of what the modules returned for it."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

#: What a part may weigh, unpacked.
_HEAVIEST = 1 << 30
_SUFFIX = ".json.gz"


class PartError(Exception):
    """A part cannot be read; the text says which, and why."""


def part(host: str, results: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What to keep of a host.

    :param results: module's name (``guest_info``, ``guest_audit``, ``guest_hints``) → what the
        task registered, failed, unreachable and skipped ones too.
    :param seconds: Unix time.
    """
    ran = {name: result for name, result in results.items() if _ran(result)}
    done = {name: result for name, result in ran.items() if not _trouble(result)}
    troubles = {name: _trouble(result) for name, result in ran.items() if _trouble(result)}
    found: dict[str, Any] = {"host": host, "time": int(seconds), "status": "ok"}
    if troubles or not ran:
        unreachable = any(result.get("unreachable") for result in ran.values())
        found["status"] = "partly" if done else "unreachable" if unreachable else "failed"
        found["message"] = _together(troubles) or "nothing ran on it"
    versions = (str(result["version"]) for result in ran.values() if result.get("version"))
    found["version"] = next(versions, None)
    # What was skipped on a host that is in trouble was asked for.
    found["asked"] = [name for name in results if troubles or name in ran]
    found["guests"] = list(_guests(ran, audited="guest_audit" in found["asked"]))
    for name, key in (("guest_audit", "findings"), ("guest_hints", "hints")):
        if name in done:
            found[key] = list(_rows(done[name].get(key)))
    if rules := list(_rows(done.get("guest_audit", {}).get("rules"))):
        found["rules"] = rules
    return found


def _rows(value: Any) -> Iterator[Mapping[str, Any]]:
    for row in value if isinstance(value, (list, tuple)) else ():
        if isinstance(row, Mapping):
            yield row


def _ran(result: Any) -> bool:
    return isinstance(result, Mapping) and bool(result) and not result.get("skipped")


def _trouble(result: Mapping[str, Any]) -> str:
    """Why a task failed; empty where it did not. Findings are no failure of the audit."""
    reason = str(result.get("reason") or "")
    if reason == "findings":
        return ""
    if not (result.get("failed") or result.get("unreachable") or reason):
        return ""
    text = _line(result.get("msg")).removeprefix("Task failed: ") or "it failed"
    stderr = _line(result.get("module_stderr"))
    return f"{text}: {stderr}" if stderr else text


def _line(value: Any) -> str:
    """A message in one line, of a length that fits a table."""
    return re.sub(r"\s+", " ", value).strip()[:500] if isinstance(value, str) else ""


def _together(texts: Mapping[str, str]) -> str:
    """What several tasks complain of, each text once."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{text} ({', '.join(which)})" for text, which in names.items())


def _guests(ran: Mapping[str, Mapping[str, Any]], *, audited: bool) -> Iterator[dict[str, Any]]:
    """Each guest once, with what each module knows of it."""
    found: dict[str, dict[str, Any]] = {}

    def entry(row: Mapping[str, Any]) -> dict[str, Any]:
        name = str(row.get("name") or "?")
        known = found.setdefault(str(row.get("uuid") or name), {"name": name})
        known.update({key: row[key] for key in ("uuid", "id", "state") if row.get(key)})
        return known

    for name, result in ran.items():
        for row in _rows(result.get("guests")):
            known = entry(row)
            if isinstance(row.get("tables"), Mapping):
                known["tables"] = row["tables"]
            if name == "guest_audit":
                known["checked"] = True
                if notes := _notes(row):
                    known["notes"] = notes
    for name, result in ran.items():
        for row in _rows(result.get("failed_guests")):
            what = str(row.get("table") or name)
            text = f"{row.get('reason') or 'failed'}: {_line(row.get('msg'))}"
            entry(row).setdefault("troubles", {})[what] = text
    for known in found.values():
        if troubles := known.pop("troubles", None):
            known["message"] = _together(troubles)
        elif audited and not known.get("checked"):
            known["message"] = "it was not checked"
        yield known


def _notes(row: Mapping[str, Any]) -> list[Any]:
    """What the audit could not check of a guest."""
    given = row.get("notes") or []
    notes = [*given] if isinstance(given, (list, tuple)) else [given]
    if row.get("baseline") is False:
        notes.append("not compared: it has no baseline")
    return notes


def file_name(host: str) -> str:
    """The file of a host's part, whatever the host is called."""
    return quote(host, safe="") + _SUFFIX


def packed(found: Mapping[str, Any]) -> bytes:
    """A part as it is kept."""
    return gzip.compress(
        json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"), 6, mtime=0
    )


def parts(folder: Path) -> Iterable[Path]:
    """The files of a folder of parts, in a fixed order."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


def read(path: Path) -> dict[str, Any]:
    """A part that was kept.

    :raises PartError: it is none.
    """
    try:
        with gzip.open(path) as stream:
            content = stream.read(_HEAVIEST + 1)
        if len(content) > _HEAVIEST:
            raise PartError(f"{path}: heavier than {_HEAVIEST >> 20} MiB")
        found = json.loads(content)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise PartError(f"{path}: no part of a report: {error}") from error
    if not isinstance(found, dict):
        raise PartError(f"{path}: no part of a report")
    return found


def write(path: Path, content: bytes) -> bool:
    """Replace a file by another content, readable by its owner alone; whether that changed it."""
    try:
        if path.read_bytes() == content:
            return False
    except OSError:
        pass
    fresh = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    fresh.replace(path)
    return True
