"""This machine once more, to be spoiled: a namespace of its own on a copy that vanishes.

Everything that is written goes into RAM (an overlay); processes, /run and mounts are its own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

#: $0 is an empty folder; the rest is the command.
_ENTER = """
set -e
mount -t tmpfs -o size=4g none "$0"
mkdir "$0/upper" "$0/work" "$0/root"
mount -t overlay -o "lowerdir=/,upperdir=$0/upper,workdir=$0/work" overlay "$0/root"
mount --rbind /dev "$0/root/dev"
mount -t proc proc "$0/root/proc"
mount -t tmpfs none "$0/root/run"
mkdir "$0/root/run/lock"
exec chroot "$0/root" "$@"
"""


def run(
    command: list[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command there.

    :param folder: an empty one, to mount things on; what is below it cannot be seen there.
    """
    assert os.geteuid() == 0
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER]
    return subprocess.run(
        [*words, str(folder), *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
