# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which guests of a host a module is about, and how all of them are asked."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase

from ansible_collections.virtintrospect.fleet.plugins.module_utils.command import (
    Command,
    CommandError,
    common_arguments,
    failing,
)

#: What ``list`` knows of a guest without looking into it.
_LISTED = "id,name,uuid,state,session"
#: After one of these no other command on the same guest can succeed.
HOPELESS = ("no_such_target", "gone", "memory", "not_recognised", "missing")


def guest_arguments():
    """Options of the modules that look into guests."""
    return dict(
        common_arguments(),
        domains={"type": "list", "elements": "str"},
        exclude={"type": "list", "elements": "str", "default": []},
        parallel={"type": "int", "default": 4},
    )


def fits(guest, wanted):
    """Whether one of these names, ids, UUIDs or shell patterns means a guest."""
    exact = (guest["name"], guest.get("uuid"), str(guest.get("id", "")))
    return any(word in exact or fnmatchcase(guest["name"], word) for word in wanted)


def select(command, domains, exclude):
    """Guests that run, as ``list`` shows them, and failures for those that were named but do not.

    It does not look into them: :func:`with_kernel` does.

    :param domains: names, ids, UUIDs, patterns; ``None`` means all.
    :raises CommandError: the host's guests cannot be listed.
    """
    running = command.ask(["list", "--columns", _LISTED]).data
    chosen = [
        guest
        for guest in running
        if (domains is None or fits(guest, domains)) and not fits(guest, exclude)
    ]
    missed = [
        word
        for word in domains or []
        if not any(sign in word for sign in "*?[") and not any(fits(g, [word]) for g in running)
    ]
    text = "no domain of that name, id or UUID runs on this host"
    return chosen, [{"name": word, "reason": "no_such_target", "msg": text} for word in missed]


def begin(module, **nothing):
    """What a module that looks into guests begins with.

    :param nothing: the result of the task where it ends here.
    :returns: the command, its version, and guests and failures as of :func:`select`.
    """
    with failing(module, **nothing):
        command = Command(module)
        version = command.version()
        chosen, missed = select(command, module.params["domains"], module.params["exclude"])
    return command, version, chosen, missed


def with_kernel(command, guest):
    """A guest with its system and kernel, as ``list`` would show them.

    :raises CommandError: no kernel is known in it, or it cannot be looked into.
    """
    if "kernel" in guest:
        return guest
    info = command.ask(["info", "--columns", "os,release", guest["uuid"]]).data
    names = {"os": "os", "kernel": "release"}
    return dict(guest, **{key: info[name] for key, name in names.items() if name in info})


def busy(parallel):
    """How many at a time where that is all work for the CPU.

    A process costs as much CPU as some guests, so no more than there are CPUs.
    """
    return min(parallel, os.cpu_count() or 1)


def each(command, guests, function, parallel):
    """Call a function for each guest, some at a time.

    :returns: what it returned, guest by guest, and failures of those for which it raised
        :class:`CommandError`.
    """

    def call(guest):
        try:
            with command.one_guest():
                return function(guest), None
        except CommandError as error:
            return None, failure(guest, error)

    with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
        results = list(pool.map(call, guests))
    return (
        [result for result, failed in results if failed is None],
        [failed for _result, failed in results if failed is not None],
    )


def failure(guest, error, **more):
    """An entry of ``failed_guests``."""
    known = {key: guest[key] for key in ("name", "uuid") if key in guest}
    return dict(known, **dict(more, **error.as_dict()))
