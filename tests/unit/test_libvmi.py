"""docs/libvmi.md names what there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import virtintrospect
from virtintrospect import driver, errors, model, nested
from virtintrospect.arch.paging import Walk
from virtintrospect.cli.main import cli
from virtintrospect.domain import Domain
from virtintrospect.memory import PhysicalMemory
from virtintrospect.session import Session
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.table import Symbols
from virtintrospect.symbols.types import Types

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| (`.*?|`.*? and all that wait for events) \| (.*) \|$", re.M)
ROWS = ROW.findall((DOCS / "libvmi.md").read_text(encoding="utf-8"))
NAME = re.compile(r"`([\w.-]+(?: [a-z]+)?)`")
OWNERS: dict[str, Any] = {
    "AddressSpace": AddressSpace, "Domain": Domain, "PhysicalMemory": PhysicalMemory,
    "Session": Session, "Symbols": Symbols, "Types": Types, "Walk": Walk,
    "virtintrospect": virtintrospect,
}  # fmt: skip


def exists(name: str) -> bool:
    """Whether a class with a member, a command, or a class alone is there."""
    if name.startswith("virt-introspect "):
        return name.split()[1] in cli.commands
    if name == "virt-introspectd":
        return True
    owner, _, member = name.partition(".")
    found = OWNERS.get(owner)
    for module in (driver, errors, model, nested):
        found = found or getattr(module, owner, None)
    if found is None or not member:
        return found is not None
    if hasattr(found, member):
        return True
    # Fields without a default, and attributes that __init__ sets, are no attributes of the class.
    annotated = {name for base in found.__mro__ for name in getattr(base, "__annotations__", {})}
    return member in annotated or f"self.{member} = " in _source(found)


def _source(found: type) -> str:
    import inspect

    ours = [base for base in found.__mro__ if base.__module__.startswith("virtintrospect")]
    return "".join(inspect.getsource(base) for base in ours)


def test_there_are_rows() -> None:
    assert len(ROWS) > 60
    assert len(re.findall(r"`(vmi_|peparse_)\w+`", "".join(left for left, _ in ROWS))) > 150


@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[left[:40] for left, _ in ROWS])
def test_row(theirs: str, ours: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", ours):
        assert (DOCS / target).exists(), target
    if ours.startswith(("none", "not needed")):
        assert len(ours) > 20, f"{theirs}: say why"
        return
    names = NAME.findall(ours)
    assert names or "](" in ours, theirs
    for name in names:
        assert exists(name), f"{theirs}: {name}"


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert not exists("Session.nothing")
    assert not exists("Nothing.at_all")
    assert not exists("virt-introspect nothing")
