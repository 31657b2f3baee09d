"""A host without guests: an executable that says what the real one once said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def recorded(name: str) -> Any:
    """What a command of the real one printed (``record.py``)."""
    return json.loads((HERE / "recorded" / f"{name}.json").read_text())


GUESTS: list[dict[str, Any]] = recorded("list")
FIRST, SECOND, THIRD = GUESTS[:3]
NAMES = [guest["name"] for guest in GUESTS]

#: A name of a process that would be a command in a template.
PWNED = "{{ lookup('pipe', 'touch PATH') }}"


def failed(code: int, text: str) -> dict[str, Any]:
    """An answer that is an error."""
    return {"rc": code, "err": f"virt-introspect: {text}\n"}


class Fake:
    """``virt-introspect`` of a host.

    :param folder: an empty one, for the executable and what it needs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "virt-introspect"
        text = (HERE / "answering.py").read_text()
        # No shim, no site-packages: it is started very often.
        self.path.write_text(f"#!{sys.executable} -IS\n{text}")
        self.path.chmod(0o755)
        self._answers: dict[str, Any] = {"--version": {"out": "virt-introspect, version 0.1.0\n"}}
        self.answer("check --list", out=recorded("rules"))
        for name in ("list", "info", "interfaces", "load", "ps", "hints"):
            self.answer(name, out=recorded(name))
        self.answer("check", out=recorded("check"), rc=6)

    def answer(self, words: str, **answer: Any) -> None:
        """Let it answer a command so: ``out``, ``err``, ``rc``, ``sleep`` (seconds)."""
        self._answers[words] = answer
        (self._folder / "answers.json").write_text(json.dumps(self._answers))

    def forget(self, words: str) -> None:
        """Let it not know a command."""
        del self._answers[words]
        (self._folder / "answers.json").write_text(json.dumps(self._answers))

    @property
    def asked(self) -> list[list[str]]:
        """The command lines that it was given, without ``--version`` and ``batch``."""
        lines = (self._folder / "log").read_text().splitlines()
        asked: list[list[str]] = [json.loads(line) for line in lines]
        return [line for line in asked if line[0] not in ("--version", "batch")]
