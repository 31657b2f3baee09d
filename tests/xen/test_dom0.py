"""The Xen driver on a real Xen: runs the tests of ``inside`` in its dom0.

One boot serves all of them. Here is the short core, PV and PVH with one kernel; ``make test-xen``
runs everything.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator

import pytest

from tests import support
from tests.guests.lab.apt import NoSuchPackageError
from tests.xen.lab.machine import TREE, XenMachine
from tests.xen.lab.parts import GUESTS, PARTS, parts

_WHOLE = bool(os.environ.get("VIRTINTROSPECT_XEN_WHOLE"))
#: Other tests to run in dom0 than those below, by pytest's words.
_CHOSEN = shlex.split(os.environ.get("VIRTINTROSPECT_XEN_TESTS", ""))
_KERNELS = ("6.1", "6.12") if _WHOLE else ("6.1",)
#: HVM guests take minutes to boot here: one, and what depends on the kind of guest.
_RUNS = [(kind, kernel) for kernel in _KERNELS for kind in ("pvh", "pv")]
_RUNS += [("hvm", "6.1")] if _WHOLE else []
#: Seconds for what runs in dom0, on a loaded machine.
_PATIENCE = 3600 if _WHOLE or _CHOSEN else 900
_INSIDE = "tests/xen/inside"
_DRIVER = [f"{_INSIDE}/test_{name}.py" for name in ("driver", "bad_input")]
_LINUX = "tests/guests/test_linux.py"
#: The tables that everything else leans on.
_CORE = [
    f"{_LINUX}::test_{name}"
    for name in (
        "processes", "threads", "modules", "dmesg", "shortcuts_agree_with_the_page_tables",
        "single_and_bulk_walk_agree_on_user_memory", "user_memory_is_the_process_own",
        "unmapped_address_is_a_fault", "log_goes_on_where_it_was_left",
    )
]  # fmt: skip
#: What holds each table against the guest's own word, in the order of every other run.
_FILES = [
    f"tests/guests/test_{name}.py"
    for name in (
        "bpf", "cgroups", "containers", "counters", "details", "files", "hung", "interfaces",
        "linux", "namespaces", "neighbours", "routes", "search", "slabs", "sockets", "stacks",
        "swapped", "sysctl", "timers", "users",
    )
]  # fmt: skip
#: What is not so on Xen, and is tested in ``inside`` as it is there.
_NOT_HERE = [
    "tests/guests/test_hung.py::test_a_guest_that_is_paused",
    # All of a guest's memory is there.
    "tests/guests/test_search.py::test_absent_pages_stay_absent",
    *(
        f"{_LINUX}::test_{name}"
        for name in (
            "transport_is_the_best_there_is", "info", "kernel_base_and_slide",
            "live_guest_is_not_tainted_by_all_this",
            # 4 and 11 MB over the console of an emulated machine.
            "every_symbol_is_where_the_guest_has_it", "types_are_those_of_the_guest",
            "types_of_a_module",
        )
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def machine() -> Iterator[XenMachine]:
    if os.geteuid() != 0:
        pytest.skip("the lab's machine reads this machine's files, which needs root")
    try:
        with XenMachine(hvm=_WHOLE) as running:
            yield running
    except NoSuchPackageError as error:
        pytest.skip(str(error))


@pytest.mark.timeout(_PATIENCE + 300)
@pytest.mark.parametrize(("kind", "kernel"), _RUNS)
def test_in_dom0(machine: XenMachine, kind: str, kernel: str) -> None:
    """Everything that runs inside, for one kind of guest and one kernel."""
    settings = {
        PARTS: parts((kernel,), whole=_WHOLE),
        GUESTS: f"{kind}-{kernel}",
        "VIRTINTROSPECT_XEN_ROUNDS": "1000" if _WHOLE and kernel == "6.1" else "50",
        "SUPPORT_RECORD": "1" if support.RECORD else "",
        "SUPPORT_ONLY": " ".join(support.ONLY),
    }
    words = ["-m", "pytest", "--noconftest", "-p", "tests.xen.inside.fixtures"]
    words += ["-p", "no:cacheprovider", "-q", "--durations=5", "--timeout=900"]
    if _CHOSEN:
        words += _CHOSEN
    elif kind == "hvm":
        words += [*_DRIVER, *_CORE]
    elif _WHOLE:
        words += [_INSIDE, *_FILES, *(f"--deselect={name}" for name in _NOT_HERE)]
    else:
        words += [*_DRIVER, *_CORE]
    command = shlex.join([sys.executable, *words])
    answer = machine.execute_in_tree(command, _PATIENCE, environment=settings)
    said = answer.stdout.decode(errors="replace") + answer.stderr.decode(errors="replace")
    print(said)
    assert answer.status == 0, f"in dom0: {said[-6000:]}\n{machine.log()}"
    assert " passed" in said
    if support.RECORD:
        support.PAGE.write_bytes(machine.run(f"cat {TREE}{support.PAGE}"))
