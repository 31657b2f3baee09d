"""Modules that one of the kernel's own books has and another has not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux import moduleviews
from virtintrospect.insight.checks.rule import Hit, Rule

if TYPE_CHECKING:
    from virtintrospect.insight.checks.context import Context

_LIST, _TREE, _SYSFS = "list", "address-tree", "sysfs"
#: MODULE_STATE_LIVE, MODULE_STATE_COMING (include/linux/module.h).
_LIVE, _COMING = 0, 1


def hidden_modules(context: Context) -> Iterator[Hit]:
    """Modules that the list lacks, and live modules of the list that another book lacks."""
    guest, budget = context.guest, context.budget
    listed = set(moduleviews.by_list(guest, budget))
    books: dict[str, set[int]] = {}
    ways: tuple[tuple[str, Callable[[], list[int]]], ...] = (
        (_TREE, lambda: moduleviews.by_address(guest, budget)),
        (_SYSFS, lambda: moduleviews.by_directory(guest, budget)),
    )
    for name, way in ways:
        try:
            books[name] = set(way())
        except VirtIntrospectError as error:
            context.cannot(f"hidden-module: the {name}: {error.message}")
    listed |= set(moduleviews.by_list(guest, budget))
    if budget.problem:  # half a book would accuse everyone
        return
    everyone = sorted(listed.union(*books.values()))
    layout = guest.layout("module", {"name": "name", "state": "state"}, text=("name",))
    columns = layout.lists(guest.kernel, everyone, [])
    for address, name, state in zip(everyone, columns["name"], columns["state"], strict=True):
        if name is None or state not in (_LIVE, _COMING):
            continue
        shown = name.split(b"\0", 1)[0]
        seen = [book for book, modules in books.items() if address in modules]
        if address not in listed:
            missing = [_LIST, *(book for book in books if book not in seen)]
        elif state == _LIVE:
            seen.append(_LIST)
            missing = [book for book in books if book not in seen]
        else:
            continue
        if missing:
            text = f"it is hidden from the {', '.join(missing)}, and known to the {', '.join(seen)}"
            yield Hit(
                b"module " + shown,
                text.encode(),
                {"missing": ",".join(missing), "seen": ",".join(seen), "address": hex(address)},
            )


RULES = (
    Rule(
        id="hidden-module",
        severity="critical",
        title="A kernel module is hidden from one of the kernel's books",
        looks_at="Every module by three ways: the list of modules (/proc/modules, `modules`), the "
        "tree that leads from an address to its module, and the directories of /sys/module. "
        "Whoever is in one of them must be in all.",
        remedy="Take the guest off the network and dump it; the evidence has the address of its "
        "struct module. Nothing that the guest says of itself can be believed any more.",
        false_positives="None is known on a live guest. An image may have been taken while a "
        "module was loaded or unloaded.",
        blind="A module that has left all three books; "
        "unknown-code finds its memory, and other rules what it hooks.",
        reference="T1014",
        check=hidden_modules,
    ),
)
