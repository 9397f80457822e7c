"""
Tells the service manager how we are: systemd's notification protocol, which is one datagram a time.

Without ``NOTIFY_SOCKET`` nobody is told.  What cannot be delivered is dropped: no program stops
because its manager does not listen.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from time import CLOCK_MONOTONIC, clock_gettime_ns

MICROSECONDS = 1_000_000


class Service:
    """
    Our process as a service.

    Attributes:
        watchdog_s: The manager ends us if it hears nothing of us for so long; 0 is never.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # a name that is in no file system
            self._address = "\0" + self._address[1:]
        microseconds = environment.get("WATCHDOG_USEC", "0")
        meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usable = meant and self._address and microseconds.isdecimal()
        self.watchdog_s = int(microseconds) / MICROSECONDS if usable else 0.0

    def ready(self, status: str) -> None:
        """We serve; also said once a reload is over."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """We read our configuration again."""
        now = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, at_most_s: float) -> None:
        """We stop, which may take so long; a manager that would wait less waits on."""
        extend = int(at_most_s * MICROSECONDS)
        self._tell("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={extend}")

    def status(self, status: str) -> None:
        """Say what is shown of us."""
        self._tell(f"STATUS={status}")

    async def keep_alive(self) -> None:
        """Tell the watchdog that the event loop runs, for as long as it does."""
        while self.watchdog_s:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        said = "\n".join(line.replace("\n", " ") for line in lines)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.setblocking(False)
            try:
                out.sendto(said.encode(), self._address)
            except OSError:
                return
