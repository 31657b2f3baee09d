"""What may forbid to read guests or to run hooks: capabilities, Yama, AppArmor, SELinux."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from virtintrospect.plugin.check import NOTE, OK, PROBLEM, WARNING, Check
from virtintrospect.plugin.daemons import Daemon

#: Bits of the capabilities that reading a guest takes (<linux/capability.h>).
_CAPABILITIES = {"CAP_SYS_PTRACE": 19, "CAP_DAC_READ_SEARCH": 2}
_HOOKS_RULE = re.compile(r"^\s*/etc/libvirt/hooks/\*\*\s+\w*x\w*\s*,", re.MULTILINE)


def checks(daemons: list[Daemon], root: Path = Path("/")) -> Iterator[Check]:
    """All checks of this module.

    :param daemons: libvirt's daemons that run hooks.
    :param root: where /proc, /sys and /etc are.
    """
    missing = missing_capabilities(root)
    yield _capabilities(missing)
    yield _yama(root, privileged="CAP_SYS_PTRACE" not in missing)
    yield from _apparmor(daemons, root)
    yield from _selinux(daemons, root)


def missing_capabilities(root: Path = Path("/")) -> list[str]:
    """Those of the needed capabilities that this process lacks."""
    text = _text(root / "proc/self/status")
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", text, re.MULTILINE)
    held = int(match[1], 16) if match else 0
    return [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]


def selinux_may_forbid(daemons: list[Daemon], root: Path = Path("/")) -> str | None:
    """The domain of a modular daemon that SELinux confines, if there is one.

    virtqemud_t and its like may run hooks only where the policy says so; libvirtd's virtd_t may
    do what it wants. A hook that cannot be executed aborts the start of a guest.
    """
    if _text(root / "sys/fs/selinux/enforce") != "1":
        return None
    for daemon in daemons:
        context = _text(root / f"proc/{daemon.pid}/attr/current").rstrip("\0").split(":")
        if len(context) > 2 and re.fullmatch(r"virt(qemud|xend)_t", context[2]):
            return context[2]
    return None


def _capabilities(missing: list[str]) -> Check:
    user = f"uid {os.geteuid()}"
    if not missing:
        return Check("capabilities", OK, user, "may read the memory of every guest")
    return Check(
        "capabilities", WARNING, user, f"lacks {' and '.join(missing)}: only guests of this very "
        "user can be read", "run as root",
    )  # fmt: skip


def _yama(root: Path, *, privileged: bool) -> Check:
    """kernel.yama.ptrace_scope (Documentation/admin-guide/LSM/Yama.rst)."""
    setting = "kernel.yama.ptrace_scope"
    text = _text(root / "proc/sys/kernel/yama/ptrace_scope")
    if not text.isdecimal():
        return Check("ptrace", OK, setting, "Yama is not in use")
    if text == "3":
        advice = f"it cannot be lowered before a reboot: set {setting}=1 in /etc/sysctl.d"
        return Check("ptrace", PROBLEM, setting, "3: nobody may read another process", advice)
    if text == "0" or privileged:
        return Check("ptrace", OK, setting, f"{text}: it is no obstacle")
    detail = f"{text}: takes CAP_SYS_PTRACE, which this user lacks"
    return Check("ptrace", WARNING, setting, detail, "run as root")


def _apparmor(daemons: list[Daemon], root: Path) -> Iterator[Check]:
    if _text(root / "sys/module/apparmor/parameters/enabled") != "Y":
        yield Check("apparmor", OK, "kernel", "AppArmor is not in use")
        return
    for daemon in daemons:
        profile = _text(root / f"proc/{daemon.pid}/attr/apparmor/current") or _text(
            root / f"proc/{daemon.pid}/attr/current"
        )
        subject = f"{daemon.name}[{daemon.pid}]"
        if "(enforce)" not in profile:
            yield Check("apparmor", OK, subject, f"not enforced ({profile or 'unknown'})")
            continue
        names = [f"etc/apparmor.d/usr.sbin.{daemon.name}", f"etc/apparmor.d/{daemon.name}"]
        names += [f"etc/apparmor.d/local/{name.rpartition('/')[2]}" for name in names]
        texts = [text for name in names if (text := _text(root / name))]
        if not texts:
            detail = f"{profile}: its source is not in /etc/apparmor.d"
            yield Check("apparmor", NOTE, subject, detail, "see that it lets hooks run")
        elif any(_HOOKS_RULE.search(text) for text in texts):
            yield Check("apparmor", OK, subject, f"{profile}: may run hooks")
        else:
            yield Check(
                "apparmor", PROBLEM, subject, f"{profile}: may not run hooks, which would abort "
                "every start", f"put '/etc/libvirt/hooks/** rmix,' into /etc/apparmor.d/local/"
                f"usr.sbin.{daemon.name} and apparmor_parser -r its profile",
            )  # fmt: skip


def _selinux(daemons: list[Daemon], root: Path) -> Iterator[Check]:
    enforce = _text(root / "sys/fs/selinux/enforce")
    if enforce not in ("0", "1"):
        yield Check("selinux", OK, "kernel", "SELinux is not in use")
    elif domain := selinux_may_forbid(daemons, root):
        yield Check(
            "selinux", WARNING, domain, "enforcing: where the policy does not let this domain run "
            "hooks, guests do not start", "setsebool -P virt_hooks_unconfined on; restorecon -R "
            "/etc/libvirt/hooks; then start a guest that does not matter (ausearch -m avc)",
        )  # fmt: skip
    else:
        yield Check("selinux", OK, "kernel", "enforcing" if enforce == "1" else "permissive")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
