"""
What screens look like, as files: characters to test against, pictures for the documentation.

``CORTEX_RENEW_SCREENS=1 python -m pytest tests/cli/top/test_screens.py`` writes both anew; look at
the difference before you commit it.
"""

from __future__ import annotations

import asyncio
import difflib
import html
import os
import re
from pathlib import Path

from tests.cli.top.watching import Watcher

SCREENS = Path(__file__).parent / "screens"
PICTURES = Path(__file__).parents[3] / "docs" / "pictures"
RENEW = "CORTEX_RENEW_SCREENS"
QUIET_S = 0.5  # after which a screen that is to be written is taken to be complete


async def matches(watcher: Watcher, name: str) -> None:
    """Wait until the screen is as its file says."""
    columns, lines = watcher.app.size
    file = SCREENS / f"{name}-{columns}x{lines}.txt"
    if RENEW in os.environ:
        await quiet(watcher)
        file.write_text(f"{watcher.text}\n", "utf-8")
    wanted = file.read_text("utf-8").removesuffix("\n")

    def unlike(text: str) -> str:
        lines = difflib.unified_diff(wanted.splitlines(), text.splitlines(), file.name, lineterm="")
        return "\n".join((f"not as in its file; if it should be so, renew with {RENEW}=1", *lines))

    await watcher.until(wanted.__eq__, unlike)


async def pictured(watcher: Watcher, name: str) -> int:
    """Check that the picture of the screen says the same as the screen; return its bytes."""
    file = PICTURES / f"{name}.svg"
    if RENEW in os.environ:
        await quiet(watcher)
        file.write_text(picture(watcher, name), "utf-8")
    kept = file.read_text("utf-8")

    def right(_: str) -> bool:
        return words(picture(watcher, name)) == words(kept)

    def wrong(text: str) -> str:
        return f"{file} shows something else than this; renew it with {RENEW}=1\n{text}"

    await watcher.until(right, wrong)
    assert picture(watcher, name) == picture(watcher, name)
    return len(kept)


def picture(watcher: Watcher, name: str) -> str:
    """Return the screen as SVG, without the fonts that it would fetch from elsewhere."""
    svg = watcher.app.export_screenshot(title=name.replace("-", " "), simplify=True)
    return re.sub(r"\s*@font-face {.*?}", "", svg, flags=re.DOTALL)


def words(svg: str) -> str:
    """Return the characters of a picture, blanks aside: how it is drawn changes with versions."""
    return "".join(html.unescape("".join(re.findall(r"<text [^>]*>([^<]*)<", svg))).split())


async def quiet(watcher: Watcher) -> None:
    """Wait until nothing is drawn any more."""
    while True:
        watcher.app.drawn.clear()
        try:
            await asyncio.wait_for(watcher.app.drawn.wait(), QUIET_S)
        except TimeoutError:
            return
