"""
The dashboard: one view of the fleet, the link that feeds it, the screens that draw it.

Events change the view as they come and are drawn at once, but no sooner than `REDRAW_S` after the
last time; the figures no event tells are asked for every `POLL_S`.  A lost gateway leaves the
last view, marked as stale, and is tried again after `PAUSES_S`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.timer import Timer

from cortex.cli.client import Gateway
from cortex.cli.top import actions
from cortex.cli.top.asking import Ask, Keys
from cortex.cli.top.events import EventsScreen
from cortex.cli.top.fleet import FleetScreen
from cortex.cli.top.link import Link
from cortex.cli.top.model import ModelScreen
from cortex.cli.top.requests import RequestsScreen
from cortex.cli.top.screen import TopScreen, display
from cortex.cli.top.view import View
from cortex.errors import CortexError
from cortex.fleet.node import Fleet

REDRAW_S = 0.04
POLL_S = 2.0
TICK_S = 1.0
PALETTE = ("ctrl+p", "Find any of these by name; the theme, too")
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0)


class TopApp(App[None]):
    """``TopApp(gateway).run()``."""

    TITLE = "cortex top"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "go('fleet')", "Fleet"),
        Binding("2", "go('requests')", "Requests"),
        Binding("3", "go('events')", "Events"),
        Binding("R", "reload", "Reload configuration", show=False),
        Binding("question_mark", "keys", "Keys", key_display="?"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(
        self, gateway: Gateway, *, light: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__()
        self._clock = clock
        self.theme = "textual-light" if light else "textual-dark"
        self.view = View()
        self._gateway = gateway
        self._link = Link(gateway)
        self._due: Timer | None = None
        self._drawn_at = 0.0

    async def on_mount(self) -> None:
        await self._link.__aenter__()
        view, url = self.view, self._gateway.url
        self.install_screen(FleetScreen(view, url), "fleet")
        self.install_screen(RequestsScreen(view, url, self._link), "requests")
        self.install_screen(EventsScreen(view, url), "events")
        await self.push_screen("fleet")
        self.run_worker(self._follow())
        self.run_worker(self._poll())
        self.set_interval(TICK_S, self._tick)

    async def on_unmount(self) -> None:
        await self._link.__aexit__()

    async def _follow(self) -> None:
        failed, why = 0, "it ended"
        while True:
            try:
                async with aclosing(self._link.events()) as events:
                    async for event, data in events:
                        self.view.hear(event, data, self._clock())
                        failed = 0
                        self.changed()
            except CortexError as error:
                why = str(error)
            pause_s = PAUSES_S[min(failed, len(PAUSES_S) - 1)]
            failed += 1
            now = self._clock()
            self.view.lose(why, now, now + pause_s)
            self.changed()
            await asyncio.sleep(pause_s)

    async def _poll(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(POLL_S)
            if self.view.problem is not None:
                continue
            try:
                fleet = await self._link.get(Fleet, "/api/v1/fleet")
            except CortexError as error:
                if str(error) != said:
                    said = str(error)
                    self.view.journal.note(self._clock(), "gateway", said, bad=True)
                continue
            said = ""
            if self.view.problem is None:
                self.view.refresh(fleet, self._clock())
                self.changed()

    def _tick(self) -> None:
        if self.view.problem is not None:  # its age grows
            self.changed()

    def changed(self) -> None:
        """Draw as soon as may be, once for all that changes until then."""
        if self._due is None:
            rest_s = self._drawn_at + REDRAW_S - time.monotonic()
            self._due = self.set_timer(max(rest_s, 0.001), self._draw)

    def _draw(self) -> None:
        self._due, self._drawn_at = None, time.monotonic()
        self.view.now = self._clock()
        for screen in self.screen_stack:
            if isinstance(screen, TopScreen) and screen.is_mounted:
                screen.draw()

    async def action_go(self, screen: str) -> None:
        """Show one of the screens that are always there."""
        while isinstance(self.screen, ModelScreen):
            await self.pop_screen()
        if self.screen is not self.get_screen(screen):
            await self.switch_screen(screen)

    def action_keys(self) -> None:
        """Say what the keys do here."""
        if isinstance(self.screen, TopScreen):
            ours = [(display(key), key.description) for _, key in self.screen.ours()]
            self.push_screen(Keys([*ours, *self.screen.MORE_KEYS, PALETTE]))

    def action_reload(self) -> None:
        """Ask whether to reload."""
        self._ask(actions.reload())

    def on_fleet_screen_chosen(self, event: FleetScreen.Chosen) -> None:
        self.push_screen(ModelScreen(self.view, self._gateway.url, self._link, event.model))

    def on_top_screen_asked(self, event: TopScreen.Asked) -> None:
        self._ask(event.question)

    def _ask(self, question: actions.Question) -> None:
        self.push_screen(Ask(question), self._answered)

    def _answered(self, action: actions.Action | None) -> None:
        if action is not None:
            self.run_worker(self._do(action))

    async def _do(self, action: actions.Action) -> None:
        try:
            answer = await self._link.tell(
                action.method, action.path, action.body, action.timeout_s
            )
        except CortexError as error:
            said, bad = f"{action.label}: {error}", True
        else:
            said, bad = actions.done(action, answer), False
        self.view.journal.note(self._clock(), "done", said, bad=bad)
        self.notify(said, severity="error" if bad else "information", markup=False)
        self.changed()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer what the keys do, and Textual's own, in the command palette."""
        for scope, key in screen.ours() if isinstance(screen, TopScreen) else ():
            if key.action != "quit":  # of which Textual has one
                owner = screen if scope == "screen" else self
                do = partial(self.run_action, key.action, default_namespace=owner)
                yield SystemCommand(key.description, f"key {display(key)}", do)
        yield from super().get_system_commands(screen)
