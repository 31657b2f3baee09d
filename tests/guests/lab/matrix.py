"""The guests that tests run on. One line adds a kernel or a configuration."""

from __future__ import annotations

from .domain import Config

#: Pairwise over kernel × page-table levels × backing × KPTI: every pair of values occurs, but
#: for 5.10 with 5 levels: Debian builds it without CONFIG_X86_5LEVEL.
MATRIX = (
    Config("5.10", levels=4, backing="memfd", pti=True),
    Config("5.10", levels=4, backing="anonymous", pti=False),
    Config("6.1", levels=4, backing="anonymous", pti=True),
    Config("6.1", levels=5, backing="memfd", pti=False),
    Config("6.12", levels=4, backing="memfd", pti=False),
    Config("6.12", levels=5, backing="anonymous", pti=True),
    Config("7.2", levels=4, backing="anonymous", pti=False),
    Config("7.2", levels=5, backing="memfd", pti=True),
)

#: Of another architecture.
ARM64 = Config("6.12-arm64", levels=4, backing="memfd", pti=False, machine="virt", arch="aarch64")

#: For tests that one guest is enough for; one of the matrix, so that it shares its boot.
DEFAULT = MATRIX[4]

#: 32-bit x86, without PAE and with: what does not depend on the architecture runs elsewhere.
I386 = (
    Config("6.1-686", levels=2, backing="anonymous", pti=False, arch="i686", machine="pc"),
    Config("6.1-686-pae", levels=3, backing="memfd", pti=True, arch="i686", ram_mib=1280),
)
