"""What all screens share: the line on top, the keys at the bottom, drawing, asking."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import Binding
from textual.css.query import NoMatches
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Static

from cortex.cli.console import duration
from cortex.cli.top.actions import Question
from cortex.cli.top.drawing import age
from cortex.cli.top.link import Link
from cortex.cli.top.view import View
from cortex.errors import CortexError
from cortex.fleet.node import Fleet


class Banner(Static):
    """Which gateway this is, and whether what is shown is how things are."""

    DEFAULT_CSS = """
    Banner { height: auto; max-height: 3; padding: 0 1; background: $panel;
             text-wrap: nowrap; text-overflow: ellipsis; }
    Banner.-problem { text-wrap: wrap; }
    """

    def __init__(self) -> None:
        super().__init__(Text(), markup=False)
        self._said = Text()

    def show(self, view: View, url: str) -> None:
        """Say how things are."""
        self.set_class(view.problem is not None, "-problem")
        said = banner(view, url)
        if said != self._said:
            self._said = said
            self.update(said)


def banner(view: View, url: str) -> Text:
    """Return the line: what the fleet is, or what is wrong with the gateway."""
    if view.problem is None and view.fleet is not None:
        return _healthy(view.fleet, url)
    again = max(view.retry_at - view.now, 0)
    next_try = f", next try in {again:.0f} s" if view.retry_at else ""
    if view.fleet is None:
        return Text.assemble(("cortex top", "bold"), f" {url}{next_try}: {view.problem}")
    since = duration(max(view.now - view.heard_at, 0))
    return Text.assemble((f"STALE, as of {since} ago", "bold red"), f"{next_try}: {view.problem}")


def _healthy(fleet: Fleet, url: str) -> Text:
    healthy, total = sum(node.healthy for node in fleet.nodes), len(fleet.nodes)
    line = Text.assemble(("cortex", "bold"), f" {fleet.version}  ")
    if not total:
        return line.append("no node is configured: add [[neurons]] to cortex.toml", "yellow")
    line.append(f"{healthy} of {total} nodes healthy", "green" if healthy == total else "red")
    line.append(f"  {sum(node.in_flight for node in fleet.nodes)} in flight")
    return line.append(f"  up {age(fleet.uptime_s)}  {url}", "dim")


class KeyLine(Static):
    """The keys one has to know; a click does the same."""

    DEFAULT_CSS = """
    KeyLine { dock: bottom; height: 1; padding: 0 1; background: $panel;
              text-wrap: nowrap; text-overflow: ellipsis; link-style: none; }
    """

    def on_mount(self) -> None:
        line = Text()
        if isinstance(self.screen, TopScreen):
            for scope, binding in self.screen.ours():
                if binding.show:
                    click = Style(meta={"@click": f"{scope}.{binding.action}"})
                    line.append(display(binding), click + Style(bold=True))
                    line.append(f" {binding.description}", click).append("  ")
        self.update(line)


def display(binding: Binding) -> str:
    """Return what is on the key."""
    return binding.key_display or binding.key


class TopScreen(Screen[None]):
    """
    Draws a `View` when told to; it changes nothing by itself.

    Attributes:
        MORE_KEYS: What widgets have, and ``?`` shows as well.
    """

    MORE_KEYS: ClassVar[tuple[tuple[str, str], ...]] = ()

    class Asked(Message):
        """Somebody wants to do something: ask, then do it."""

        def __init__(self, question: Question) -> None:
            super().__init__()
            self.question = question

    def __init__(self, view: View, url: str) -> None:
        super().__init__()
        self.view = view
        self.url = url

    def ours(self) -> Iterator[tuple[str, Binding]]:
        """Yield the keys that do something here, with whose action it is: screen's or app's."""
        for scope, bindings in (("screen", self.BINDINGS), ("app", self.app.BINDINGS)):
            for binding in bindings:
                if isinstance(binding, Binding):
                    yield scope, binding

    def draw(self) -> None:
        """Draw what is known now; a screen not yet put together, or taken apart, is left alone."""
        with suppress(NoMatches):
            self.paint()

    def paint(self) -> None:
        """Draw each part."""
        self.query_one(Banner).show(self.view, self.url)
        self.set_class(self.view.stale, "-stale")

    def on_mount(self) -> None:
        self.call_after_refresh(self.draw)

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self.draw)

    def ask(self, question: Question) -> None:
        """Ask before anything is done."""
        self.post_message(self.Asked(question))

    def say(self, text: str) -> None:
        """Say why a key does nothing now."""
        self.notify(text, severity="warning", markup=False)


class AskingScreen(TopScreen):
    """
    Asks the gateway for what it shows, at once and then every `EVERY_S` while it is in front.

    Attributes:
        problem: Why the last answer did not come; empty if it did.
    """

    EVERY_S: ClassVar[float] = 2.0

    def __init__(self, view: View, url: str, link: Link) -> None:
        super().__init__(view, url)
        self.link = link
        self.problem = ""
        self._in_front = asyncio.Event()

    async def look(self) -> None:
        """Ask once, and keep the answer."""
        raise NotImplementedError

    def on_mount(self) -> None:
        self.run_worker(self._look_on())

    def on_screen_resume(self) -> None:
        self._in_front.set()

    def on_screen_suspend(self) -> None:
        self._in_front.clear()

    async def _look_on(self) -> None:
        while True:
            await self._in_front.wait()
            if self.view.problem is None:
                try:
                    await self.look()
                except CortexError as error:
                    self.problem = str(error)
                else:
                    self.problem = ""
                self.draw()
            await asyncio.sleep(self.EVERY_S)
