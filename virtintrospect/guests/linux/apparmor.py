"""Labels of AppArmor (security/apparmor/): which profile confines a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from virtintrospect.errors import FaultError, NotFoundError

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: A name may be the path of a program; of stacked profiles it is longer still.
_MAX_NAME = 4096
#: ``lsm_blob_sizes.lbs_cred``: no module has more of its own.
_MAX_OFFSET = 4096
#: enum profile_mode (security/apparmor/include/policy.h).
_MODES = (b"enforce", b"complain", b"kill", b"unconfined", b"user")


def labels(guest: LinuxGuest, blobs: Sequence[int | None], budget: Budget) -> list[bytes | None]:
    """What /proc/PID/attr/current says where AppArmor is on, for each ``cred.security``.

    Every security module has its part of that blob; where AppArmor's begins the kernel wrote
    down at boot.
    """
    offset = _offset(guest)
    if offset is None:
        return [None] * len(blobs)
    distinct = list({blob for blob in blobs if blob})
    faults: list[int] = []
    words = guest.kernel.gather_pointers([blob + offset for blob in distinct], faults)
    bad = set(faults)
    label_of = {b: w for i, (b, w) in enumerate(zip(distinct, words, strict=True)) if i not in bad}
    names = _names(guest, list(set(label_of.values()) - {0}), budget)
    found = [names.get(label_of.get(blob or 0, 0)) for blob in blobs]
    return [text if text is None or budget.keep(len(text)) else None for text in found]


def _names(guest: LinuxGuest, labels: list[int], budget: Budget) -> dict[int, bytes]:
    """The name of each label, with its mode where it has one profile, as most have.

    A label whose profile was replaced leads by its proxy to the one that counts.
    """
    members = {"label": "proxy.label", "name": "proxy.label.hname", "size": "proxy.label.size"}
    columns = guest.layout("aa_label", members, text=()).lists(guest.kernel, labels, [])
    profiles = guest.types.offsetof("aa_label", "vec")
    layout = guest.layout("aa_profile", {"mode": "mode"}, text=())
    shown: dict[int, bytes] = {}
    for place, label, name, size in zip(labels, *columns.values(), strict=True):
        if not name or budget.late() or not budget.follow(1):
            continue
        try:
            text = guest.kernel.string(name, _MAX_NAME)
            if size == 1 and text != b"unconfined":
                profile = guest.kernel.read_pointer(label + profiles)
                mode = layout.read(guest.kernel, profile)["mode"]
                text += b" (" + _MODES[mode] + b")" if 0 <= mode < len(_MODES) else b""
        except FaultError as error:
            guest.note("unreadable AppArmor label", error.address)
        else:
            if not budget.keep(len(text)):
                break
            shown[place] = text
    return shown


def _offset(guest: LinuxGuest) -> int | None:
    """Where AppArmor's pointer is in a blob; ``None`` where it is off, or cannot be told."""
    try:
        symbols, types = guest.symbols, guest.types
        on = guest.kernel.read(symbols.address("apparmor_initialized"), 4)
        if not any(on) or not types.has("aa_label", "proxy.label"):
            return None
        sizes = symbols.address("apparmor_blob_sizes")
        own = guest.kernel.read(sizes + types.offsetof("lsm_blob_sizes", "lbs_cred"), 4)
        offset = int.from_bytes(own, "little")
    except (FaultError, NotFoundError):
        return None
    return offset if offset <= _MAX_OFFSET else None
