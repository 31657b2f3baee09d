"""The library's reference: it builds, its links lead somewhere, and nothing public lacks words."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = "".join(
    page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs/api").glob("*.rst"))
)
MODULES = sorted(set(re.findall(r"automodule:: (\S+)", PAGES)))


def public(module: str) -> Iterator[tuple[str, object]]:
    """Classes and functions of a module that are its own, and their methods."""
    for name, value in vars(importlib.import_module(module)).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module:
            continue
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        yield name, value
        if inspect.isclass(value):
            for member, inner in vars(value).items():
                callable_ = inspect.isfunction(inner) or isinstance(inner, property)
                if callable_ and not member.startswith("_"):
                    yield f"{name}.{member}", getattr(value, member)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module: str) -> None:
    assert importlib.import_module(module).__doc__
    for name, value in public(module):
        text = inspect.getdoc(value) or ""
        # What dataclass and NamedTuple make up themselves is the signature again.
        made_up = text.startswith(f"{name}(")
        assert text, f"{module}.{name}"
        assert not made_up, f"{module}.{name}"


def test_every_record_is_in_the_reference() -> None:
    from virtintrospect import model

    for name in model.__all__:
        record = getattr(model, name)
        assert record.__module__ in MODULES, name
        assert dataclasses.is_dataclass(record) or issubclass(record, tuple | StrEnum), name


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [
        sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
        "-d", str(tmp_path / "trees"), str(ROOT / "docs/api"), str(tmp_path / "html"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html/session.html").read_text(encoding="utf-8")
    for name in ("Session.search", "Session.page_owners", "Guest.maps"):
        assert (
            f'id="virtintrospect.{"session" if "Session" in name else "guests.base"}.{name}"'
            in page
        )
