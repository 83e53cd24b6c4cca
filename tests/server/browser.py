"""A headless browser, driven over the pipe that Chrome's DevTools protocol can use: no driver."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ON_MACS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--no-default-browser-check", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-extensions", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 30.0  # seconds for anything to happen
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}


def find() -> str | None:
    """Where a Chromium is, if there is one."""
    found = (shutil.which(name) for name in NAMES)
    return next(filter(None, found), next(filter(os.path.exists, ON_MACS), None))


class Browser:
    """A browser with one page.

    Attributes:
        asked: addresses that the page has asked for.
        said: messages of its console, errors and broken security rules among them.
    """

    def __init__(self, program: str, folder: Path) -> None:
        (read, theirs_to_write), (theirs_to_read, self._write) = os.pipe(), os.pipe()
        # The browser reads from 3 and writes to 4; the pipe's own ends must not lie there.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_to_read, theirs_to_write)]
        quiet = os.open(os.devnull, os.O_WRONLY)
        self._pid = os.posix_spawn(
            program,
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, ends[0], 3),
                (os.POSIX_SPAWN_DUP2, ends[1], 4),
                (os.POSIX_SPAWN_DUP2, quiet, 1),
                (os.POSIX_SPAWN_DUP2, quiet, 2),
            ],
            setpgroup=0,
        )
        for end in (theirs_to_read, theirs_to_write, *ends, quiet):
            os.close(end)
        self._read, self._rest, self._number = read, b"", 0
        self._session: str | None = None
        self.asked: list[str] = []
        self.said: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            assert ready, "The browser says nothing."
            part = os.read(self._read, 1 << 20)
            assert part, "The browser has ended."
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str | None, params: Any) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.said.append(params["entry"]["text"])

    def run(self, script: str) -> Any:
        """The value of a script's expression; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"Never true: {script}\n{self.said}"
            time.sleep(0.02)

    def open(self, url: str) -> None:
        """Go to a page, and wait until its scripts have run."""
        self.run("window.before = true")
        self.call("Page.navigate", url=url)
        self.until("!window.before && document.readyState === 'complete'")

    def click(self, selector: str, where: str = "") -> None:
        """Click on the last element of a selector that is seen, with `where` in its text."""
        chosen = (
            f"[...document.querySelectorAll({json.dumps(selector)})].findLast((e) => "
            f"e.checkVisibility() && e.textContent.includes({json.dumps(where)}))"
        )
        self.until(f"{chosen} !== undefined")
        x, y = self.run(
            f"(() => {{ const e = {chosen}; e.scrollIntoView({{ block: 'nearest' }});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2];"
            "})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Insert text where the cursor is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, modifiers=8 * shift, **code, **more)

    def screenshot(self, path: Path) -> None:
        """Save what is seen as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@functools.cache
def program() -> str | None:
    """`find`, once."""
    return find()


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser until the block ends."""
    where = program()
    assert where is not None
    browser = Browser(where, folder)
    try:
        yield browser
    finally:
        browser.close()
