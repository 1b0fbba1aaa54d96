"""Headless Chromium for tests, driven through the DevTools protocol over its pipe."""

import base64
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser:
    """One page of a browser that runs until `close`. events: what the page did, as it came."""

    def __init__(self, profile: Path):
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip(f"no Chromium here (looked for {', '.join(NAMES)}): apt install chromium")
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        options += ["--no-first-run", "--disable-background-networking", "--disable-extensions"]
        # It reads commands from file 3 and answers in file 4.
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", program, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.numbers, self.events = itertools.count(1), []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Performance"):
            self.call(f"{domain}.enable")

    session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        number = next(self.numbers)
        said = {"id": number, "method": method, "params": parameters}
        said |= {"sessionId": self.session} if self.session else {}
        self.process.stdin.write(json.dumps(said).encode() + b"\0")
        self.process.stdin.flush()
        while True:
            answer = self.read()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def read(self) -> dict[str, Any]:
        """The next message; events are kept."""
        text = bytearray()
        while (byte := self.process.stdout.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, page: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.read()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def key(self, name: str, code: int) -> None:
        """Press a key, as the keyboard would."""
        for kind in ("rawKeyDown", "keyUp"):
            about = {"key": name, "code": name, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, **about)

    def screen(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Show the page on a screen of so many pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """What is seen, or the whole page, as a PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    @property
    def seconds(self) -> float:
        """Time that the page's process has computed, whatever else runs on this machine."""
        found = self.call("Performance.getMetrics")["metrics"]
        return next(row["value"] for row in found if row["name"] == "ProcessTime")

    @property
    def fetched(self) -> list[str]:
        """Addresses that were asked for, but for the page itself and what stands in it."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls[1:] if not url.startswith("data:")]

    @property
    def errors(self) -> list[Any]:
        """What went wrong in the page."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def pictures(browser: Browser, page: Path, folder: Path) -> list[Path]:
    """What the documentation shows of a report: on a desktop, on a phone, in the dark."""
    made = []
    for name, width, height, phone, dark, at in (
        ("desktop", 1280, 1336, False, False, "samples"),
        ("phone", 390, 1180, True, False, "samples"),
        ("dark", 1280, 1016, False, True, "training"),
    ):
        browser.screen(width, height, phone=phone, dark=dark)
        browser.open(page)
        browser.run(f"document.getElementById('{at}').scrollIntoView()")
        browser.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
        made.append(folder / f"{name}.png")
        browser.picture(made[-1])
    return made


if __name__ == "__main__":  # python tests/browser.py report.html docs/report
    page, folder = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        pictures(browser, page, folder)
        browser.close()
