"""A headless Chromium, driven over its DevTools pipe; needs no package."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TIMEOUT = 120.0  # seconds, generous for a busy machine
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}


class Browser:
    """One page of a browser; `events` holds what it told unasked."""

    def __init__(self, commands: int, answers: int, downloads: Path):
        self.commands, self.answers = commands, answers
        self.events: list[dict[str, Any]] = []
        self.received, self.last_id, self.session = b"", 0, {}
        self.send(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(downloads),
            eventsEnabled=True,
        )
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params, **self.session}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") != self.last_id:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.received:
            if not select.select([self.answers], [], [], TIMEOUT)[0]:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self.answers, 2**16)
            if not chunk:
                raise RuntimeError("the browser has ended")
            self.received += chunk
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path | str, width: int = 1000, height: int = 800) -> None:
        """Open a file or URL in a window of a size, and wait until its pictures are decoded."""
        self.events.clear()
        self.resize(width, height)
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self.send("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        self.run("Promise.all([...document.images].map((image) => image.decode())).then(() => 0)")

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def run(self, script: str) -> Any:
        """Evaluate JavaScript, waiting for a promise; raise RuntimeError if it throws."""
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def messages(self, *methods: str) -> list[dict[str, Any]]:
        """List the events of these names since the page was opened."""
        self.run("0")  # events come in order, so all earlier ones are here after this answer
        return [event["params"] for event in self.events if event.get("method") in methods]

    def wait_for(self, script: str) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        until = time.monotonic() + TIMEOUT
        while time.monotonic() < until:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.1)
        raise TimeoutError(script)

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into the file input that a selector finds, as its dialog would."""
        document = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def download(self, script: str) -> Path:
        """Run a script that starts a download, and wait until the file is whole.

        On a busy machine Chromium loses a script's first click on a link now and then, without a
        request or an event of it; so it is run again, as a person would click again.
        """
        start = time.monotonic()
        for again in range(int(TIMEOUT / 5)):
            if not self.messages("Browser.downloadWillBegin"):
                self.run(script)
            while time.monotonic() < start + 5 * (again + 1):
                steps = self.messages("Browser.downloadProgress")
                if steps and steps[-1]["state"] == "completed":
                    return Path(steps[-1]["filePath"])
                time.sleep(0.1)
        raise TimeoutError(script)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=KEYS[key],
                **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}),
            )

    def mouse(self, kind: str, x: float, y: float, buttons: int = 1) -> None:
        self.send(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left",
            buttons=buttons,
            clickCount=1,
        )

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": x, "y": y} for x, y in points]
        self.send("Input.dispatchTouchEvent", type=kind, touchPoints=places)

    def screenshot(self) -> np.ndarray:
        """Return the visible part of the page as 8-bit RGB."""
        shot = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


@contextmanager
def start_browser(profile: Path) -> Iterator[Browser]:
    """Run Chromium without any network until the block ends."""
    assert CHROMIUM, "needs chromium on the PATH"
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    # Chromium reads from 3 and writes to 4; high numbers are in the way of neither.
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (command_read, answer_write)]
    options = [
        "--headless=new",
        "--no-sandbox",  # root needs it, and only our own pages are opened
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-pipe",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$0" "$@" 3<&{theirs[0]} 4>&{theirs[1]}', CHROMIUM, *options],
        pass_fds=theirs,
        stderr=subprocess.DEVNULL,
    )
    for fd in (command_read, answer_write, *theirs):
        os.close(fd)
    try:
        browser = Browser(command_write, answer_read, profile / "downloads")
        yield browser
        browser.session = {}
        browser.send("Browser.close")
        process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()
        os.close(command_write)
        os.close(answer_read)
