"""Chromium without a window, driven over its DevTools protocol through a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

#: Seconds for one answer, on a loaded machine.
PATIENCE = 120
#: What is said of a page that is asked while it makes room for another.
_LEFT = re.compile(r"context was destroyed|[Cc]annot find .*context|navigated or closed")


class LeftError(AssertionError):
    """The page that was asked is there no more."""


class Browser:
    """One page in a browser. A context manager.

    :param size: of the window, in pixels.
    """

    def __init__(self, size: tuple[int, int] = (1400, 1000)) -> None:
        program = shutil.which("chromium")
        assert program is not None, "chromium is missing: make browser installs it"
        # Its helpers may write there for a moment after it has ended.
        self._profile = tempfile.TemporaryDirectory(
            prefix="vi-lab-chromium-", ignore_cleanup_errors=True
        )
        to_it, ours = os.pipe()
        its, from_it = os.pipe()[::-1]
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}",
            f"--window-size={size[0]},{size[1]}", "about:blank",
        ]  # fmt: skip
        # Chromium reads from descriptor 3, and writes to 4.
        script = f'exec "$@" 3<&{to_it} 4>&{its}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command], pass_fds=(to_it, its),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        os.close(to_it)
        os.close(its)
        self._to = os.fdopen(ours, "wb", buffering=0)
        self._from = os.fdopen(from_it, "rb", buffering=0)
        self._buffer = b""
        self._last = 0
        #: What the page did that it should not: errors, and requests for anything but itself.
        self.complaints: list[str] = []
        answer = self._ask("Target.attachToTarget", targetId=self._page(), flatten=True)
        self._session: str = answer["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable", self._session)

    def open(self, path: Path, part: str = "") -> None:
        """Open a report, and wait until a part of it is shown."""
        url = f"{path.as_uri()}#{part}"
        self._ask("Page.navigate", self._session, url="about:blank")
        self._ask("Page.navigate", self._session, url=url)
        self.wait(f"document.documentElement?.dataset.ready === {json.dumps(part.split('?')[0])}")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._ask(
            "Runtime.evaluate", self._session,
            expression=script, awaitPromise=True, returnByValue=True,
        )  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self._true(script):
            assert time.monotonic() < deadline, f"never true: {script}; {self.complaints}"
            time.sleep(0.05)

    def key(self, key: str) -> None:
        """Press a key that stands for itself or has a name."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", self._session, type=kind, key=key, **text)

    def close(self) -> None:
        """End the browser."""
        self._to.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._from.close()
        self._profile.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _page(self) -> str:
        """Its first page, which it may open after it has begun to answer."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for target in self._ask("Target.getTargets")["targetInfos"]:
                if target["type"] == "page":
                    return str(target["targetId"])
            time.sleep(0.05)
        raise AssertionError("chromium has no page")

    def _true(self, script: str) -> bool:
        try:
            return bool(self.run(script))
        except LeftError:
            return False

    def _ask(self, method: str, session: str | None = None, /, **params: Any) -> dict[str, Any]:
        self._last += 1
        question: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if session:
            question["sessionId"] = session
        self._to.write(json.dumps(question).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._last:
                if _LEFT.search(message.get("error", {}).get("message", "")):
                    raise LeftError(f"{method}: {message['error']}")
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            got = self._from.read(1 << 20)
            assert got, "chromium has ended"
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif message["method"] == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "blob:", "about:")):
                self.complaints.append(f"it asks for {url[:100]}")
        elif message["method"] == "Page.javascriptDialogOpening":
            self.complaints.append(f"a dialog: {params['message']}")
