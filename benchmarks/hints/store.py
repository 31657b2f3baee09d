"""Results on disk, so that an experiment that was interrupted goes on where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Store:
    """One JSON object a line; what is there under the same key is not measured again.

    :param path: the file; it is made when the first result comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines() if line]

    def has(self, **key: Any) -> bool:
        """Whether there is a result under this key."""
        return next(self.found(**key), None) is not None

    def found(self, **key: Any) -> Iterator[Row]:
        """All results that have these values."""
        return (row for row in self.rows if key.items() <= row.items())

    def add(self, key: dict[str, Any], **values: Any) -> None:
        """Keep a result, with when it was measured and how busy the machine was."""
        row = key | values | {"at": round(time.time()), "load": round(os.getloadavg()[0], 1)}
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
