"""The collection's own Python, for tests of it without Ansible's loaders."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from tests.guests.lab.paths import HERE

#: Where Ansible finds the collection.
COLLECTIONS = HERE.parents[2] / "ansible"
_PLUGINS = "ansible_collections.virtintrospect.fleet.plugins"


def plugin(name: str, kind: str = "plugin_utils") -> Any:
    """A module of the collection."""
    if str(COLLECTIONS) not in sys.path:
        sys.path.insert(0, str(COLLECTIONS))
    return importlib.import_module(f"{_PLUGINS}.{kind}.{name}")
