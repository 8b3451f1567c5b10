"""A page in a real browser, by Chromium's DevTools pipe; no other package is needed."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-pipe",
)


class Tab:
    """A page, driven by mouse, keyboard and JavaScript."""

    def __init__(self, to_browser, from_browser):
        self._to, self._from = to_browser, from_browser
        self._number, self._session, self._buffer = 0, None, b""
        self.events = []

    def call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        while b"\0" not in self._buffer:
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        raw, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(raw)

    def attach(self):
        targets = self.call("Target.getTargets")["targetInfos"]
        (target,) = (one["targetId"] for one in targets if one["type"] == "page")
        answer = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = answer["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        self._session = None
        self.call("Browser.close")

    def open(self, path, *, fragment="", before="", size=(1280, 1000), dark=False):
        """Opens a file anew; ``before`` is JavaScript that runs before the page's."""
        self.call("Page.navigate", url="about:blank")
        self.resize(*size)
        wanted = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce",  # A place on the screen stays.
        }
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        method = "Page.addScriptToEvaluateOnNewDocument"
        script = self.call(method, source=before)["identifier"]
        self.events.clear()
        self.call("Page.navigate", url=pathlib.Path(path).as_uri() + fragment)
        self.wait("document.body && document.readyState === 'complete'")
        self.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
        return self

    def resize(self, width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **metrics, mobile=width < 500)

    def js(self, expression):
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", details).get("description"))
        return answer["result"].get("value")

    def wait(self, expression, seconds=30):
        end = time.monotonic() + seconds
        while not self.js(expression):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def frame(self):
        """Waits until the page has shown what was done."""
        self.js("new Promise(f => requestAnimationFrame(() => setTimeout(f, 0)))")

    def text(self, selector):
        return self.js(f"document.querySelector({selector!r}).textContent")

    def box(self, selector):
        """Left, top, width and height on the screen, scrolled into sight."""
        return self.js(
            f"(e => {{ e.scrollIntoView({{block: 'center'}});"
            "const r = e.getBoundingClientRect();"
            f"return [r.left, r.top, r.width, r.height]; }})"
            f"(document.querySelector({selector!r}))"
        )

    def drag(self, points):
        """Presses the mouse at the first point, and moves it over the others."""
        for n, (x, y) in enumerate([*points, points[-1]]):
            kind = "mousePressed" if n == 0 else "mouseMoved"
            self._mouse("mouseReleased" if n == len(points) else kind, x, y)
        self.frame()

    def _mouse(self, kind, x, y):
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left",
            buttons=int(kind != "mouseReleased"),
            clickCount=1,
        )

    def click(self, selector):
        left, top, width, height = self.box(selector)
        self.drag([(left + width / 2, top + height / 2)])

    def hover(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.frame()

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)
        self.frame()

    def screenshot(self, path):
        height = self.js("document.documentElement.scrollHeight")
        width = self.js("innerWidth")
        self.resize(width, height)
        self.frame()
        data = self.call("Page.captureScreenshot")["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def requests(self):
        named = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in named]

    def errors(self):
        """Exceptions, and errors and warnings on the console."""
        found = []
        for event in self.events:
            level = event["params"].get("entry", event["params"]).get("level", "")
            is_bad = level in ("error", "warning") or (
                event["method"] == "Runtime.consoleAPICalled"
                and event["params"]["type"] in ("error", "warning")
            )
            if is_bad or event["method"] == "Runtime.exceptionThrown":
                found.append(event)
        return found


@contextlib.contextmanager
def browse():
    """Starts the browser with an empty page."""
    down, up = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        script = f'exec "$@" 3<&{down[0]} 4>&{up[1]}'
        command = ["bash", "-c", script, "-", str(PROGRAM), *FLAGS]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(down[0], up[1]),
            stderr=subprocess.DEVNULL,
        )
        os.close(down[0])
        os.close(up[1])
        tab = Tab(down[1], up[0])
        try:
            tab.attach()
            yield tab
        finally:
            with contextlib.suppress(RuntimeError, OSError):
                tab.close()
            os.close(down[1])
            os.close(up[0])
            process.wait(30)
