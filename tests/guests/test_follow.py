"""``dmesg --follow`` on real guests: order, floods, reboot, the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .lab.domain import Config
from .lab.guest import Guest
from .test_life import PROGRAM, command

PATIENCE = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Follower:
    """A running ``dmesg --follow`` and what it has printed."""

    def __init__(self, guest: Guest, folder: Path, *options: str) -> None:
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            # Where the tests run in the background, Ctrl-C is ignored, and children inherit that.
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            self.process = subprocess.Popen(
                [PROGRAM, "dmesg", guest.name, "--follow", *options], stdout=out, stderr=err
            )
            signal.signal(signal.SIGINT, before)

    def texts(self) -> list[str]:
        """Of the complete lines of -o jsonl."""
        whole = self.out.read_text().rpartition("\n")[0]
        return [json.loads(line).get("text", "") for line in whole.splitlines()]

    def wait_for(self, text: str) -> None:
        self.wait(lambda: text in self.out.read_text())

    def wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline, (self.out.read_text()[-500:], self.err.read_text())
            time.sleep(0.05)

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)

    def cpu(self) -> float:
        """Seconds of CPU time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def following(guest: Guest, folder: Path, *options: str) -> Iterator[Follower]:
    """A follower that has come to the end of the log, whatever other tests have put into it."""
    mark = f"followed from here: {folder.name}"
    guest.run(f"echo '{mark}' > /dev/kmsg")
    follower = Follower(guest, folder, *options)
    try:
        follower.wait_for(mark)
        yield follower
    finally:
        follower.process.kill()
        follower.process.wait()


def test_messages_come_once_and_in_order(one_guest: Guest, tmp_path: Path) -> None:
    before = len(one_guest.snapshot().log)
    with following(one_guest, tmp_path, "-o", "jsonl", "--interval", "0.05") as follower:
        one_guest.run(
            'for i in $(seq 100); do echo "follow $i" > /dev/kmsg; usleep 3000; done', timeout=60
        )
        one_guest.run("printf '<3>facility and level\\n' > /dev/kmsg")
        follower.wait_for("facility and level")
        quiet, start = follower.cpu(), time.monotonic()
        time.sleep(2)
        assert follower.cpu() - quiet < (time.monotonic() - start) / 2
        assert follower.stop() == 0
    texts = follower.texts()
    assert len(texts) > before + 90  # of a full ring some may go meanwhile
    mine = [text for text in texts if text.startswith("follow ")]
    assert mine == [f"follow {number}" for number in range(1, 101)]
    assert follower.err.read_text() == ""


def test_what_was_overwritten_is_counted(one_guest: Guest, tmp_path: Path) -> None:
    """More than the ring holds between two looks."""
    flood = "seq 30000 | awk '{print \"<6>flood \" $1; fflush()}' > /dev/kmsg"
    with following(one_guest, tmp_path, "-o", "jsonl", "--interval", "0.2") as follower:
        before = len(follower.texts())
        os.kill(follower.process.pid, signal.SIGSTOP)
        one_guest.run(flood, timeout=120)
        os.kill(follower.process.pid, signal.SIGCONT)
        follower.wait_for("flood 30000")
        assert follower.stop() == 0
    numbers = [int(text.split()[1]) for text in follower.texts() if text.startswith("flood ")]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 30000
    others = len(follower.texts()) - before - len(numbers)
    lost = re.findall(r"warning: (\d+) records were overwritten", follower.err.read_text())
    assert sum(map(int, lost)) + len(numbers) + others >= 30000
    assert sum(map(int, lost)) >= 30000 - len(numbers)


@pytest.mark.parametrize("output", ["table", "csv"])
def test_formats_that_have_a_head(one_guest: Guest, tmp_path: Path, output: str) -> None:
    options = ("-o", output, "--columns", "timestamp,level,text", "--interval", "0.05")
    with following(one_guest, tmp_path, *options) as follower:
        one_guest.run(f"echo 'following a {output}' > /dev/kmsg")
        follower.wait_for(f"following a {output}")
        assert follower.stop() == 0
    lines = follower.out.read_text().splitlines()
    heads = [line for line in lines if re.split(r"[ ,]+", line) == ["timestamp", "level", "text"]]
    assert heads == lines[:1]


def test_a_json_array_and_an_image_cannot_be_followed(one_guest: Guest, tmp_path: Path) -> None:
    line = command("dmesg", one_guest.name, "--follow", "-o", "json", code=2).stderr
    assert "-o jsonl" in line
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(2 << 20)
    assert "image" in command("dmesg", str(image), "--follow", code=2).stderr


def test_through_a_reboot_until_the_guest_ends(
    boot: Callable[[Config], Guest], tmp_path: Path
) -> None:
    guest = boot(Config("6.1", cmdline="lab.sleepers=5"))
    with following(guest, tmp_path, "-o", "jsonl", "--interval", "0.1") as follower:
        guest.run("echo 'before the reboot' > /dev/kmsg")
        follower.wait_for("before the reboot")
        guest.run("(sleep 1; reboot -f) </dev/null >/dev/null 2>&1 &")
        follower.wait(lambda: "rebooted" in follower.err.read_text())
        guest.wait_ready()
        guest.run("echo 'after the reboot' > /dev/kmsg")
        follower.wait_for("after the reboot")
        log = guest.snapshot().log
        guest.run("echo 'behind the log' > /dev/kmsg")
        follower.wait_for("behind the log")  # and so all that is before
        guest.destroy()
        assert follower.process.wait(PATIENCE) == 4
    texts = follower.texts()
    starts = [n for n, text in enumerate(texts) if text.startswith("Linux version")]
    assert len(starts) == 2
    assert [texts.count(f"{when} the reboot") for when in ("before", "after")] == [1, 1]
    ascii_texts = [record.text.decode() for record in log if record.text.isascii()]
    plain = [text for text in ascii_texts if text.isprintable() and text]
    assert [text for text in texts[starts[1] :] if text in set(plain)] == plain
    said = follower.err.read_text().splitlines()
    assert "rebooted" in said[0]
    assert "has ended" in said[-1]
    assert len(said) == 2
