"""The oldest ansible-core that the collection is for, in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.guests.lab.paths import cache, locked

OLDEST = "2.16"


def oldest() -> Path:
    """The folder of its commands; made once, and kept in the lab's cache."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache() / f"ansible-core-{OLDEST}-python{version}"
    done = folder / "done"
    with locked(folder.name):
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q",
                   "--disable-pip-version-check", f"ansible-core=={OLDEST}.*"]  # fmt: skip
            subprocess.run(pip, check=True)
            done.touch()
    return folder / "bin"
