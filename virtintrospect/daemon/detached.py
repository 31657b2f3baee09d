"""Domains that are never to be looked into: a file, so that it outlives daemon and host."""

from __future__ import annotations

import json
import os
from pathlib import Path

_MAX_SIZE = 1 << 20


class Detached:
    """UUIDs of the domains that were detached for good.

    :param path: a JSON array; made when the first is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._uuids = self._read()

    def __contains__(self, uuid: object) -> bool:
        return uuid in self._uuids

    def add(self, uuid: str) -> None:
        """Remember a domain."""
        if uuid not in self._uuids:
            self._uuids.add(uuid)
            self._write()

    def remove(self, uuid: str) -> None:
        """Forget a domain."""
        if uuid in self._uuids:
            self._uuids.discard(uuid)
            self._write()

    def _read(self) -> set[str]:
        try:
            with self.path.open("rb") as file:
                found = json.loads(file.read(_MAX_SIZE))
            return {uuid for uuid in found if isinstance(uuid, str)}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, TypeError) as error:
            # To go on would look into domains that somebody wanted left alone.
            raise SystemExit(
                f"{self.path} cannot be understood: {error}; mend or remove it"
            ) from error

    def _write(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with temporary.open("w") as file:
            json.dump(sorted(self._uuids), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
