"""The modules, on a host whose ``virt-introspect`` says what was recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .fake import FIRST, GUESTS, NAMES, PWNED, SECOND, THIRD, Fake, failed, recorded

Module = Callable[..., dict[str, Any]]


def test_tables_of_all_guests(module: Module) -> None:
    result = module("guest_info", tables=["info", "ps"])
    assert [guest["name"] for guest in result["guests"]] == NAMES
    assert result["guests"][0]["tables"] == {"info": recorded("info"), "ps": recorded("ps")}
    assert result["guests"][0]["kernel"] == FIRST["kernel"]
    assert result["failed_guests"] == []
    assert (result["version"], result["changed"]) == ("0.1.0", False)
    assert "ansible_facts" not in result


def test_facts_are_the_same(module: Module) -> None:
    result = module("guest_info", tables=[], facts=True)
    assert result["ansible_facts"]["virtintrospect"]["guests"] == result["guests"]
    assert [guest["tables"] for guest in result["guests"]] == [{}] * len(GUESTS)


@pytest.mark.parametrize(
    ("domains", "exclude", "chosen"),
    [
        (None, [], GUESTS),
        ([FIRST["name"]], [], [FIRST]),
        ([str(SECOND["id"])], [], [SECOND]),
        ([THIRD["uuid"]], [], [THIRD]),
        (["vi-lab-6.*"], [], [FIRST, SECOND]),
        (None, ["*6.12*"], [SECOND, THIRD]),
        (["vi-*"], [SECOND["uuid"]], [FIRST, THIRD]),
        (["nix*"], [], []),
        ([], [], []),
    ],
)
def test_which_guests(
    module: Module, domains: list[str] | None, exclude: list[str], chosen: list[dict[str, Any]]
) -> None:
    result = module("guest_info", tables=[], domains=domains, exclude=exclude)
    assert [guest["name"] for guest in result["guests"]] == [guest["name"] for guest in chosen]
    assert result["failed_guests"] == []


def test_options_reach_the_command(module: Module, fake: Fake) -> None:
    module(
        "guest_info", uri="test+x:///", domains=[FIRST["name"]], tables=["sockets"],
        arguments={"sockets": ["--listening"]}, columns={"sockets": ["pid", "local_port"]},
    )  # fmt: skip
    connection = ["-o", "json", "-c", "test+x:///"]
    line = ["sockets", "--columns", "pid,local_port", "--listening", FIRST["uuid"]]
    listing = ["list", "--columns", "id,name,uuid,state,session"]
    assert fake.asked == [[*connection, *listing], [*connection, *line]]


def test_a_guest_is_looked_into_once_for_its_kernel(module: Module, fake: Fake) -> None:
    """A list that knows no kernels costs nothing; one without a kernel is asked once only."""
    listed = [{key: guest[key] for key in ("id", "name", "uuid", "state")} for guest in GUESTS]
    fake.answer("list", out=listed)
    fake.answer("info --columns os,release " + SECOND["uuid"], **failed(5, "no kernel"))
    result = module("guest_info", tables=["info", "load"])
    expected = {g["name"]: recorded("info")["release"] for g in (FIRST, THIRD)}
    assert {guest["name"]: guest["kernel"] for guest in result["guests"]} == expected
    (missed,) = result["failed_guests"]
    assert (missed["table"], missed["reason"]) == ("info", "not_recognised")
    assert [line[2] for line in fake.asked if SECOND["uuid"] in line] == ["info"]
    guests = {guest["name"]: guest for guest in module("guest_info", tables=[])["guests"]}
    assert "kernel" not in guests[SECOND["name"]]
    assert guests[FIRST["name"]]["os"] == recorded("info")["os"]
    guests = {guest["name"]: guest for guest in module("guest_audit")["guests"]}
    assert "kernel" not in guests[SECOND["name"]]
    assert guests[FIRST["name"]]["kernel"] == recorded("info")["release"]


#: A ``batch`` that says which process answered, and of which kind its errors are.
_BATCH = """
import json, os, sys
if sys.argv[1] != "batch":
    sys.exit(9)
for line in sys.stdin:
    words = json.loads(line)
    answer = {"rc": 0, "out": json.dumps([{"pid": os.getpid()}]), "err": ""}
    if "list" in words:
        answer["out"] = json.dumps(GUESTS)
    if words[-1] in FAILING:
        answer = {"rc": 4, "out": "", "err": "it has ended", "error": FAILING[words[-1]]}
    print(json.dumps(answer), flush=True)
"""


def test_a_process_for_each_guest(module: Module, tmp_path: Path) -> None:
    """It keeps the guest's session; and how an error is worded means nothing there."""
    kinds = {SECOND["uuid"]: "TargetGoneError", THIRD["uuid"]: "AccessDeniedError"}
    more = [FIRST | {"name": f"g{n}", "uuid": f"u{n}"} for n in range(12)]
    program = tmp_path / "batch"
    given = [
        f"#!{sys.executable} -IS",
        f"GUESTS = {[SECOND, THIRD, *more]!r}",
        f"FAILING = {kinds!r}",
    ]
    program.write_text("\n".join([*given, _BATCH]))
    program.chmod(0o755)
    result = module("guest_info", executable=str(program), tables=["ps", "modules", "sockets"])
    assert len(result["guests"]) == len(more)
    for guest in result["guests"]:
        assert len({table[0]["pid"] for table in guest["tables"].values()}) == 1
    assert [failed["reason"] for failed in result["failed_guests"]] == ["gone", "memory"]


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        (1, "nonsense in its memory", "failed"),
        (3, "no domain of that name", "no_such_target"),
        (4, "no right to read it", "memory"),
        (4, "domain 'x' does not run any more on qemu:///system: Domain not found", "gone"),
        (4, "the QEMU process 12 of domain 'x' has ended; look again", "gone"),
        (5, "no kernel that is known", "not_recognised"),
    ],
)
def test_a_guest_that_fails_costs_itself_only(
    module: Module, fake: Fake, code: int, text: str, reason: str
) -> None:
    fake.answer(f"info {SECOND['uuid']}", **failed(code, text))
    result = module("guest_info", tables=["info", "ps"])
    tables = {guest["name"]: sorted(guest["tables"]) for guest in result["guests"]}
    assert tables.pop(SECOND["name"], None) == (["ps"] if reason == "failed" else None)
    assert list(tables.values()) == [["info", "ps"]] * 2
    assert result["failed_guests"] == [
        {"name": SECOND["name"], "uuid": SECOND["uuid"], "table": "info", "rc": code,
         "reason": reason, "msg": text}
    ]  # fmt: skip


def test_a_guest_that_is_named_and_does_not_run(module: Module) -> None:
    result = module("guest_info", domains=["nix", FIRST["name"], "none*"])
    assert [guest["name"] for guest in result["guests"]] == [FIRST["name"]]
    assert [(g["name"], g["reason"]) for g in result["failed_guests"]] == [
        ("nix", "no_such_target")
    ]


def test_a_guest_that_takes_too_long(module: Module, fake: Fake) -> None:
    fake.answer(f"info {SECOND['uuid']}", sleep=60)
    result = module("guest_info", timeout=5)
    assert len(result["guests"]) == 2
    assert [g["reason"] for g in result["failed_guests"]] == ["timeout"]


def test_an_older_version_on_the_host(module: Module, fake: Fake) -> None:
    result = module("guest_info", domains=[FIRST["name"]], tables=["info", "bpf"])
    assert list(result["guests"][0]["tables"]) == ["info"]
    assert [(g["table"], g["reason"]) for g in result["failed_guests"]] == [("bpf", "old_version")]
    fake.forget("check")
    fake.forget("check --list")
    result = module("guest_audit")
    assert (result["failed"], result["reason"]) == (True, "old_version")
    fake.answer("check", rc=2, err="Error: No such option: --severity\n")
    result = module("guest_audit")
    assert (result["failed"], result["reason"]) == (True, "old_version")


def test_output_that_is_none(module: Module, fake: Fake) -> None:
    fake.answer("info", out="Segmentation fau")
    reasons = {g["reason"] for g in module("guest_info")["failed_guests"]}
    assert reasons == {"output"}


@pytest.mark.parametrize("name", ["guest_info", "guest_hints", "guest_audit", "session", "hooks"])
def test_a_host_without_the_package(module: Module, tmp_path: Path, name: str) -> None:
    more = {"domains": ["x"]} if name == "session" else {}
    for wanted in ("no-such-program", str(tmp_path / "nix")):
        result = module(name, executable=wanted, **more)
        assert (result["failed"], result["reason"]) == (True, "missing")
        assert "virtintrospect.fleet.host" in result["msg"]


@pytest.mark.parametrize("name", ["guest_info", "guest_hints", "guest_audit"])
def test_a_host_without_libvirt(module: Module, fake: Fake, name: str) -> None:
    fake.answer("list", **failed(4, "libvirt does not answer; systemctl start libvirtd"))
    result = module(name)
    assert (result["failed"], result["reason"]) == (True, "memory")
    assert result["msg"] == "libvirt does not answer; systemctl start libvirtd"
    assert result["failed_guests"] == []


def test_strings_of_guests_stay_as_they_are(module: Module, fake: Fake) -> None:
    fake.answer("ps", out=[{"pid": 7, "name": PWNED}])
    result = module("guest_info", domains=[FIRST["name"]], tables=["ps"])
    assert result["guests"][0]["tables"]["ps"][0]["name"] == PWNED


# -- guest_audit ----------------------------------------------------------------------------


def finding(severity: str, rule: str = "x", subject: str = "s") -> dict[str, str]:
    return {"rule": rule, "severity": severity, "subject": subject, "detail": "d",
            "evidence": "e=1", "remedy": "r"}  # fmt: skip


def test_findings_of_all_guests_the_worst_first(module: Module, fake: Fake) -> None:
    base = "check --severity info"
    fake.answer(f"{base} {FIRST['uuid']}", out=[finding("low")], rc=6)
    fake.answer(f"{base} {SECOND['uuid']}", out=[finding("critical"), finding("medium")], rc=6)
    note = "note: not checked: kernel-text: no image was given\n"
    fake.answer(f"{base} {THIRD['uuid']}", out=[], err=note)
    result = module("guest_audit")
    assert [f["severity"] for f in result["findings"]] == ["critical", "medium", "low"]
    assert [f["domain"] for f in result["findings"]] == [SECOND["name"]] * 2 + [FIRST["name"]]
    assert result["findings"][0]["uuid"] == SECOND["uuid"]
    assert result["summary"] == {"info": 0, "low": 1, "medium": 1, "high": 0, "critical": 1}
    guests = {guest["name"]: guest for guest in result["guests"]}
    assert guests[SECOND["name"]]["summary"]["critical"] == 1
    assert guests[THIRD["name"]]["notes"] == ["not checked: kernel-text: no image was given"]
    assert (result["changed"], result.get("failed", False)) == (False, False)
    assert result["rules"] == recorded("rules")


def test_findings_fail_the_task_when_asked_to(module: Module, fake: Fake) -> None:
    fake.answer("check", out=[finding("medium")], rc=6)
    assert not module("guest_audit", fail_on="high").get("failed", False)
    result = module("guest_audit", fail_on="medium")
    assert (result["failed"], result["reason"]) == (True, "findings")
    assert result["msg"] == "3 findings of severity medium or worse"
    assert len(result["findings"]) == 3
    assert len(result["guests"]) == 3


def test_a_severity_that_is_not_known_is_the_worst(module: Module, fake: Fake) -> None:
    fake.answer("check", out=[finding("apocalyptic")], rc=6)
    assert module("guest_audit", fail_on="critical")["reason"] == "findings"


def test_findings_that_are_meant(module: Module, fake: Fake) -> None:
    fake.answer("check", out=[finding("high", "a", "agent 1"), finding("high", "b")], rc=6)
    accept = [
        {"rule": "a", "subject": "agent*", "domain": FIRST["name"]},
        {"rule": "b", "domain": "nix*"},
    ]
    result = module("guest_audit", accept=accept)
    assert result["accepted"] == 1
    assert [f["rule"] for f in result["findings"] if f["domain"] == FIRST["name"]] == ["b"]
    assert len(result["findings"]) == 5


def test_options_of_the_audit(module: Module, fake: Fake) -> None:
    module(
        "guest_audit", domains=[FIRST["name"]], severity="high", rules=["a", "b"],
        listening_allow=["tcp:22"], newest_kernel="6.12", kernel_images=["/boot/vmlinuz"],
    )  # fmt: skip
    line = "check --severity high --rule a --rule b --listening-allow tcp:22"
    line += f" --kernel-image /boot/vmlinuz --newest-kernel 6.12 {FIRST['uuid']}"
    assert ["-o", "json", *line.split()] in fake.asked


def test_baselines(module: Module, fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "baseline"
    arguments = {"domains": [FIRST["name"]], "baseline": str(folder)}
    result = module("guest_audit", save_baseline=True, check_mode=True, **arguments)
    assert result["changed"]
    assert not folder.exists()
    assert not any("--save-baseline" in line for line in fake.asked)
    module("guest_audit", save_baseline=True, **arguments)
    file = folder / f"{FIRST['uuid']}.json"
    assert ["--save-baseline", str(file)] == fake.asked[-1][-3:-1]
    assert folder.stat().st_mode & 0o777 == 0o700
    result = module("guest_audit", **arguments)
    assert not result["guests"][0]["baseline"]
    assert "--baseline" not in fake.asked[-1]
    file.write_text("{}")
    result = module("guest_audit", **arguments)
    assert result["guests"][0]["baseline"]
    assert ["--baseline", str(file)] == fake.asked[-1][-3:-1]
    assert not module("guest_audit", save_baseline=True, **arguments)["changed"]  # it is the same
    result = module("guest_audit", save_baseline=True, baseline=str(file / "below"))
    assert result["failed"]
    assert result["msg"] == f"{file / 'below'}: Not a directory"


# -- guest_hints ----------------------------------------------------------------------------


def test_hints_of_all_in_one_go(module: Module, fake: Fake) -> None:
    fake.answer(
        "hints", out=recorded("hints"), err=f"warning: {SECOND['name']}: no kernel in sight\n"
    )
    result = module("guest_hints", policy="dense", last="7d")
    assert fake.asked[-1][2:] == ["hints", "--all", "--policy", "dense", "--last", "7d"]
    assert [hint["uuid"] for hint in result["hints"]] == [FIRST["uuid"]] * 2
    assert [guest["name"] for guest in result["guests"]] == [FIRST["name"], THIRD["name"]]
    assert result["failed_guests"] == [
        {"name": SECOND["name"], "uuid": SECOND["uuid"], "reason": "failed",
         "msg": "no kernel in sight"}
    ]  # fmt: skip
    assert not result["changed"]


def test_whom_a_warning_is_about(module: Module, fake: Fake) -> None:
    """A guest's name may begin with another's, and have a colon."""
    other = SECOND | {"name": f"{FIRST['name']}: no"}
    fake.answer("list", out=[FIRST, other])
    fake.answer("hints", out=[], err=f"warning: {other['name']}: kernel\n")
    (failed,) = module("guest_hints")["failed_guests"]
    assert (failed["name"], failed["msg"]) == (other["name"], "kernel")


def shrink(**more: Any) -> list[dict[str, Any]]:
    hint = dict(recorded("hints")[0], current=1024, recommended=512)
    return [hint | more, recorded("hints")[1]]


def test_following_hints(module: Module, fake: Fake) -> None:
    line = f"hints --policy balanced --for 5s {FIRST['uuid']} --apply"
    fake.answer(f"{line} --dry-run", out=shrink(after=512, outcome="would be done"))
    fake.answer(f"{line} --yes", out=shrink(after=768, outcome="stopped at 768: it suffered"))
    arguments = {"domains": [FIRST["name"]], "watch": "5s", "apply": True}
    result = module("guest_hints", check_mode=True, **arguments)
    assert result["changed"]
    before, after = {"memory": 1024}, {"memory": 512}
    assert result["diff"] == {"before": {FIRST["name"]: before}, "after": {FIRST["name"]: after}}
    assert not any("--yes" in asked for asked in fake.asked)
    result = module("guest_hints", **arguments)
    assert (result["changed"], result["hints"][0]["after"]) == (True, 768)
    fake.answer(f"{line} --yes", out=recorded("hints"))
    assert not module("guest_hints", **arguments)["changed"]


def test_a_hint_that_is_refused(module: Module, fake: Fake) -> None:
    fake.answer(
        "hints", out=shrink(outcome="refused: the limits leave nothing to be done"),
        **failed(4, "not all of it was done"),
    )  # fmt: skip
    result = module("guest_hints", domains=[FIRST["name"]], apply=True)
    assert not result["changed"]
    assert len(result["hints"]) == 2
    assert [g["msg"] for g in result["failed_guests"]] == ["not all of it was done"]


def test_going_back(module: Module, fake: Fake) -> None:
    line = f"hints --undo {FIRST['uuid']}"
    row = {"domain": FIRST["name"], "resource": "memory", "action": "undo", "current": 512,
           "after": 1024, "outcome": "undone"}  # fmt: skip
    fake.answer(f"{line} --dry-run", out=[row])
    fake.answer(line, out=[row])
    arguments = {"domains": [FIRST["name"]], "undo": True}
    assert module("guest_hints", check_mode=True, **arguments)["changed"]
    assert fake.asked[-1][-1] == "--dry-run"
    assert module("guest_hints", **arguments)["changed"]
    assert fake.asked[-1][-1] == FIRST["uuid"]
    fake.answer(f"{line} --dry-run", out=[])
    assert not module("guest_hints", **arguments)["changed"]


# -- session and hooks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "state", "words"),
    [
        ({"state": "ready"}, "present", None),
        ({"state": "lost"}, "present", None),
        ({"state": "ready"}, "absent", ["detach"]),
        ({"state": "ready"}, "never", ["detach", "--forever"]),
        ({"state": "detached", "forever": False}, "absent", None),
        ({"state": "detached", "forever": False}, "never", ["detach", "--forever"]),
        ({"state": "detached", "forever": True}, "never", None),
        ({"state": "detached", "forever": True}, "absent", None),
        ({"state": "detached", "forever": True}, "present", ["attach"]),
    ],
)
def test_sessions(
    module: Module, fake: Fake, before: dict[str, Any], state: str, words: list[str] | None
) -> None:
    fake.answer("sessions", out=[FIRST | before, SECOND | {"state": "ready"}])
    for command in ("attach", "detach"):
        fake.answer(command, out=[FIRST | {"state": command}])
    for check_mode in (True, False):
        result = module("session", domain=FIRST["name"], state=state, check_mode=check_mode)
        assert result["changed"] == (words is not None)
        asked = fake.asked[-1][2:]
        does = words is not None and not check_mode
        assert asked == ([*(words or []), FIRST["uuid"]] if does else ["sessions"])
        assert [session["name"] for session in result["sessions"]] == [FIRST["name"]]
    assert result["sessions"][0]["state"] == (words[0] if words else before["state"])


def test_sessions_that_the_daemon_does_not_have(module: Module, fake: Fake) -> None:
    fake.answer("sessions", out=[FIRST | {"state": "ready"}, SECOND | {"state": "gone"}])
    result = module("session", domains=["nix", SECOND["name"]], state="present")
    assert result["failed"]
    assert [g["name"] for g in result["failed_guests"]] == ["nix", SECOND["name"]]
    fake.answer("sessions", **failed(1, "virt-introspectd does not run"))
    assert module("session", domains=["x"])["msg"] == "virt-introspectd does not run"


def test_hooks(module: Module, fake: Fake) -> None:
    rows = [{"action": "created", "subject": "/etc/libvirt/hooks"}]
    warning = {"action": "warning", "subject": "SELinux domain x", "detail": "may be forbidden"}
    fake.answer("hooks", out=[*rows, warning])
    result = module("hooks", xen=True, root="/mnt")
    assert (result["changed"], result["actions"]) == (True, rows)
    assert "may be forbidden" in str(result["warnings"])
    assert fake.asked[-1][2:] == ["hooks", "install", "--root", "/mnt", "--xen"]
    fake.answer("hooks", out=[{"action": "unchanged", "subject": "x"}])
    assert not module("hooks", state="absent", check_mode=True)["changed"]
    assert fake.asked[-1][2:] == ["hooks", "remove", "--root", "/", "--dry-run"]
