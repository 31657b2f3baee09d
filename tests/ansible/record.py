"""``python -m tests.ansible.record``: what the command really prints, for tests without guests.

Records the guests that run just now into ``recorded/``; of the first one its tables.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).with_name("recorded")
#: What is recorded: name of the file and command; ``TARGET`` is the first guest's UUID.
COMMANDS = {
    "list": ["list"],
    "rules": ["check", "--list"],
    "info": ["info", "TARGET"],
    "interfaces": ["interfaces", "TARGET"],
    "load": ["load", "TARGET"],
    "ps": ["ps", "--columns", "pid,name,uid,cmdline", "TARGET"],
    "check": ["check", "TARGET"],
    "hints": ["hints", "--for", "2s", "TARGET"],
}


def main(program: str) -> None:
    """Write the files."""
    target = ""
    for name, words in COMMANDS.items():
        line = [program, "-o", "json", *(target if word == "TARGET" else word for word in words)]
        text = subprocess.run(line, stdout=subprocess.PIPE, check=False).stdout.decode()
        (FOLDER / f"{name}.json").write_text(text)
        if name == "list":
            target = json.loads(text)[0]["uuid"]


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else str(Path(sys.executable).with_name("virt-introspect"))
    )
