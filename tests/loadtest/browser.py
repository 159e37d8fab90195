"""Debian's Chromium, driven by its chromedriver over the W3C WebDriver protocol: plain HTTP and JSON.

Only what these pages need is used, so the protocol's few commands take the place of a library.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.commands import free_port

#: Debian packages that these tests need.
PACKAGES = "chromium chromium-driver"
#: Seconds that a browser may take to start or to answer on a loaded machine.
PATIENCE_S = 30.0
_OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def missing() -> str:
    """Why there is no browser here; empty if there is one."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return ""
    return f"no browser: apt-get install {PACKAGES}"


class Browser:
    """One window. Elements are not needed: what is looked at is asked for in JavaScript."""

    def __init__(self, session_url: str) -> None:
        self._url = session_url

    def open(self, page: Path) -> None:
        self.visit(page.resolve().as_uri())

    def visit(self, url: str) -> None:
        _call(f"{self._url}/url", {"url": url})

    def run(self, script: str) -> Any:
        """The value that the script returns."""
        return _call(f"{self._url}/execute/sync", {"script": script, "args": []})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return _call(f"{self._url}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int = 900) -> None:
        """The page's own size, which a window of a desktop can't be made as small as."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str) -> None:
        self.devtools(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def console(self) -> list[str]:
        """Errors and warnings since the last call; refused requests are among them."""
        entries = _call(f"{self._url}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def drag(self, *places: tuple[float, float], press: bool = True) -> None:
        """Move the mouse over these points of the page, with its button down if `press`."""
        actions: list[dict[str, Any]] = []
        for index, (x, y) in enumerate(places):
            actions.append({"type": "pointerMove", "duration": 50, "x": round(x), "y": round(y)})
            if press and index == 0:
                actions.append({"type": "pointerDown", "button": 0})
        if press:
            actions.append({"type": "pointerUp", "button": 0})
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        _call(f"{self._url}/actions", {"actions": [mouse]})

    def screenshot(self, file: Path) -> None:
        """All of the page, also what is below the window."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A headless browser with a fresh profile in that folder."""
    port = free_port()
    with (profile / "chromedriver.log").open("wb") as log:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    session_url = ""
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if _call(f"{url}/status")["ready"]:
                    break
            except OSError:
                assert driver.poll() is None, "chromedriver ended"
                assert time.monotonic() < deadline, "chromedriver does not answer"
                time.sleep(0.05)
        wanted = {
            "goog:chromeOptions": {
                "args": [*_OPTIONS, f"--user-data-dir={profile}"],
                "binary": "/usr/bin/chromium",
            },
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = _call(f"{url}/session", {"capabilities": {"alwaysMatch": wanted}})
        session_url = f"{url}/session/{made['sessionId']}"
        yield Browser(session_url)
    finally:
        if session_url:
            with contextlib.suppress(OSError):
                _call(session_url, method="DELETE")
        driver.terminate()
        driver.wait(PATIENCE_S)


def _call(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {error.read().decode()[:500]}") from None
