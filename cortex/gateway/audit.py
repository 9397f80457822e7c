"""
Who did what, a line of JSON each.

There is one for each finished request, for what is done through the admin API, and for who was
turned away; no prompt, no answer and no key is in it.  A thread appends what came since, twice a
second.  A file that was moved away is made anew, so that logrotate needs neither a signal nor a
copy.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Literal

import attrs
from aiohttp import web

from cortex.errors import ConfigError, CortexError
from cortex.fleet.model import RequestRecord
from cortex.gateway.ticker import Ticker
from cortex.web import Handler, request_id
from cortex.wire import encode

MAX_WAITING = 100_000  # lines that wait for a disk; then the oldest go
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Action:
    """Something that is no inference: done through the admin API, or refused at the door."""

    kind: Literal["admin", "refused"]
    id: str
    principal: str
    method: str
    path: str
    status: int


class Audit:
    """The audit log at *path*; None keeps none."""

    def __init__(self, path: Path | None, where: str) -> None:
        self._path = path
        self._where = where
        self._waiting: deque[tuple[float, str | None, RequestRecord | Action]] = deque()
        self._lost = 0
        self._rest = b""
        self._file = -1
        self._ticker: Ticker | None = None

    def open(self) -> None:
        """
        Begin to write.

        Raises:
            ConfigError: The file cannot be written.
        """
        if self._path is None:
            return
        try:
            self._reopen(self._path)
        except OSError as error:
            raise ConfigError(
                f"{self._where}: audit.path: {self._path}: {error.strerror}"
            ) from None
        self._ticker = Ticker("audit log", self.write)

    def close(self) -> None:
        """Write what is left."""
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def note(self, request: web.Request, what: RequestRecord | Action) -> None:
        """Have a line written about *request*."""
        if self._path is None:
            return
        self._waiting.append((time(), request.remote, what))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._lost += 1

    def refused(self, request: web.Request, error: CortexError) -> None:
        """Note that a request was turned away at the door."""
        self.note(request, action(request, "refused", "", error.status))

    async def watch(
        self, request: web.Request, principal: str, handler: Handler
    ) -> web.StreamResponse:
        """Handle a request of the admin API, and note how it ended unless it only looks."""
        if request.method in ("GET", "HEAD"):
            return await handler(request)
        status = 500
        try:
            response = await handler(request)
            status = response.status
        except CortexError as error:
            status = error.status
            raise
        finally:
            self.note(request, action(request, "admin", principal, status))
        return response

    def write(self) -> None:
        """Append what came since the last time; what cannot be written waits for the next."""
        assert self._path is not None  # noqa: S101 - see `open`
        if not self._waiting and not self._rest:
            return
        if not _is_at(self._file, self._path):
            self._reopen(self._path)
        if self._lost:
            log.warning("%d lines of the audit log are lost", self._lost)
            self._lost = 0
        lines = [self._rest]
        while self._waiting:
            lines.append(line(*self._waiting.popleft()))
        self._rest = b"".join(lines)
        while self._rest:
            self._rest = self._rest[os.write(self._file, self._rest) :]

    def _reopen(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file = file


def action(
    request: web.Request, kind: Literal["admin", "refused"], principal: str, status: int
) -> Action:
    """Return what is noted of a request that is no inference."""
    return Action(
        kind=kind,
        id=request_id(request),
        principal=principal,
        method=request.method,
        path=request.path,
        status=status,
    )


def line(when: float, client: str | None, what: RequestRecord | Action) -> bytes:
    """Return a line of the log."""
    at = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    fields = {"time": at, "kind": "request", "client": client}
    return encode({**fields, **attrs.asdict(what, recurse=False)}) + b"\n"


def _is_at(file: int, path: Path) -> bool:
    """Tell whether an open file is still the one at *path*."""
    try:
        there, ours = path.stat(), os.fstat(file)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
