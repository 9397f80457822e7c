"""Does a piece of blocking work every half second, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

EVERY_S = 0.5
log = logging.getLogger(__name__)


class Ticker:
    """
    Calls *work* until closed, and then once more.

    What it raises is logged when it begins to fail, and again only after it has worked.
    """

    def __init__(self, name: str, work: Callable[[], None], every_s: float = EVERY_S) -> None:
        self._work = work
        self._every_s = every_s
        self._fails = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Call *work* a last time; return when it has."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            self._tick()
        self._tick()

    def _tick(self) -> None:
        try:
            self._work()
            self._fails = False
        except Exception as error:  # noqa: BLE001 - the thread goes on
            if not self._fails:
                log.warning("%s: %s; tried again every %g s", self._thread.name, error, EVERY_S)
            self._fails = True
