"""Chromium without a window, spoken to over two pipes in its own protocol: opens a page, runs scripts, takes pictures.

Keeps what a test must know of: errors on the console and every address that was asked for.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--remote-debugging-pipe", "--window-size=1280,900", "--disable-dev-shm-usage"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL without a GPU
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
)
PATIENCE_S = 60.0


class Browser:
    """`with Browser(tmp_path) as browser: browser.open(path)`."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        self.errors: list[str] = []
        self.asked: list[str] = []
        self._last, self._rest, self._answers = 0, b"", dict[int, dict[str, Any]]()
        command_end, self._write = os.pipe()
        self._read, answer_end = os.pipe()
        # The protocol wants commands on 3 and answers on 4; the shell puts them there whatever they are here.
        script = f'exec "$0" "$@" 3<&{command_end} 4>&{answer_end}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(command_end, answer_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_end)
        os.close(answer_end)
        self._session: str | None = None
        (page,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def open(self, page: Path, fragment: str = "") -> None:
        self.call("Page.navigate", url=page.resolve().as_uri() + fragment)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, waited for if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition}: never true; {self.errors}"
            time.sleep(0.05)

    def picture(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return path

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        command: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        end = time.monotonic() + PATIENCE_S
        while self._last not in self._answers:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            assert chunk, f"{method}: no answer from {CHROMIUM} within {PATIENCE_S:g} s"
            *whole, self._rest = (self._rest + chunk).split(b"\0")
            for text in whole:
                self._take(json.loads(text))
        answer = self._answers.pop(self._last)
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
        match message.get("method"), message.get("params"):
            case "Network.requestWillBeSent", params:
                self.asked.append(params["request"]["url"])
            case "Runtime.exceptionThrown", params:
                self.errors.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded", {"entry": {"level": "error"} as entry}:
                self.errors.append(entry["text"])
            case "Runtime.consoleAPICalled", {"type": "error" | "assert"} as params:
                self.errors.append(json.dumps(params["args"]))
