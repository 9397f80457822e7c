"""Chromium without a window, told what to do over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import signal
import struct
import zlib
from contextlib import asynccontextmanager, suppress

import aiohttp

from tests.e2e.programs import descendants, running, until

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
FOUND = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",  # the only way for root, and it shows nothing but pages of ours
    "--disable-3d-apis",  # a machine that tests has no GPU
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
    "--window-size=1000,600",
)
DRAWN_LINES = 30  # of pixels, of 600, each unlike all others: a blank page has two
LISTENS = re.compile(r"DevTools listening on (ws://\S+)")
# xterm.js draws on a canvas; what stands there as text only its terminal knows, so we keep that
KEEP = """
Object.defineProperty(Object.prototype, "terminal", {configurable: true, set(value) {
  Object.defineProperty(this, "terminal", {value, writable: true});
  if (value.buffer) globalThis.shown = value;
}});
"""
ROWS = """
Array.from({length: shown.rows}, (_, row) => shown.buffer.active.getLine(row).translateToString())
"""


class Page:
    """One page; `sees` and `press` are what a person does with it."""

    def __init__(self, socket):
        self._socket, self._session, self._number = socket, {}, 0

    async def do(self, method, **params):
        self._number += 1
        await self._socket.send_json(
            {"id": self._number, "method": method, "params": params, **self._session}
        )
        while (said := await self._socket.receive_json(timeout=30)).get("id") != self._number:
            pass
        assert "error" not in said, said
        return said["result"]

    async def attach(self):
        target = await self.do("Target.createTarget", url="about:blank")
        session = await self.do("Target.attachToTarget", **target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        await self.do("Page.enable")
        await self.do("Page.addScriptToEvaluateOnNewDocument", source=KEEP)

    async def open(self, url):
        await self.do("Page.navigate", url=url)

    async def ask(self, expression):
        """Return what *expression* is in the page."""
        said = await self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        return said["result"].get("value")

    async def sees(self, *wanted, timeout_s=60):
        """Wait until all that is *wanted* is on the terminal's screen."""
        rows = []
        try:
            async with asyncio.timeout(timeout_s):
                while not all(each in "\n".join(rows) for each in wanted):
                    await asyncio.sleep(0.05)
                    rows = await self.ask(ROWS) or []
        except TimeoutError:
            raise AssertionError(f"{wanted} never came, but:\n" + "\n".join(rows)) from None

    async def appears(self, selector, timeout_s=30):
        """Wait until what *selector* says is shown."""
        async with asyncio.timeout(timeout_s):
            while not await self.ask(f"document.querySelector('{selector}').offsetHeight"):
                await asyncio.sleep(0.05)

    async def press(self, key):
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" else {}
            await self.do("Input.dispatchKeyEvent", type=kind, key=key, **text)

    async def picture(self, unlike=None, timeout_s=30):
        """
        Return a picture of what is seen, once there is something to see.

        Args:
            unlike: Another picture, which it must not be the same as.
        """
        said = b""
        async with asyncio.timeout(timeout_s):
            while not said or said == unlike or len(set(lines(said))) < DRAWN_LINES:
                answer = await self.do("Page.captureScreenshot", format="png")
                said = base64.b64decode(answer["data"])
        return said


def lines(png):
    """Return each coded line of a picture; those of one colour are all the same but the first."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8
    data, at = b"", 8
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        at += length + 12
    raw, size = zlib.decompress(data), 1 + width * {2: 3, 6: 4}[kind]
    assert len(raw) == size * height
    return [raw[start : start + size] for start in range(0, len(raw), size)]


@asynccontextmanager
async def chromium(folder):
    """Start one whose profile is in *folder*; yield its page."""
    log = folder / "chromium.txt"
    line = [FOUND, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with running(line, log, HOME=str(folder)) as program:
        found = await asyncio.to_thread(until, lambda: LISTENS.search(log.read_text()), 60, program)
        try:
            async with aiohttp.ClientSession() as session:
                async with session.ws_connect(found[1], max_msg_size=0) as socket:
                    page = Page(socket)
                    await page.attach()
                    yield page
        finally:
            for pid in descendants(program.process.pid):  # Debian's command is a script around it
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
