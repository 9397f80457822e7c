"""
Usage by principal, model and day, in one SQLite database in WAL mode.

A request is added to a table in memory; a thread writes what came since, in one transaction, twice
a second.  A process that is killed loses what it had not written; the machine may go down, too, and
then the last transactions may be lost with it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

import attrs

from cortex.config.mistakes import cause
from cortex.fleet.model import RequestRecord
from cortex.fleet.principal import MAX_BUDGET_DAYS
from cortex.gateway.ticker import Ticker

DAY_S = 86_400
BUSY_S = 5.0  # how long to wait for another process that writes
SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    principal TEXT NOT NULL,
    day INTEGER NOT NULL,  -- since 1970, in UTC
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (principal, day, model)
) WITHOUT ROWID;
"""
ADD = """
INSERT INTO usage (principal, day, model, requests, prompt_tokens, completion_tokens)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (principal, day, model) DO UPDATE
SET requests = requests + excluded.requests,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens
"""
DAYS = """
SELECT day, sum(prompt_tokens + completion_tokens) FROM usage
WHERE principal = ? AND day >= ? GROUP BY day
"""
ROWS = """
SELECT principal, day, model, requests, prompt_tokens, completion_tokens FROM usage
WHERE day >= ? ORDER BY principal, day, model
"""
Entry = tuple[str, int, str]
Counts = tuple[int, int, int]
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Usage:
    """What one principal used of one model on one day in UTC."""

    principal: str
    day: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


class Ledger:
    """
    The usage a gateway counts; unopened it only adds up.

    A place that cannot be used is a warning, and usage is then counted until the process ends.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._pending: dict[Entry, Counts] = {}
        self._adding = threading.Lock()
        self._writing = threading.Lock()  # held by whoever uses `_database`
        self._database: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None  # the event loop's
        self._ticker: Ticker | None = None

    def open(self) -> None:
        """Open the database, and begin to write."""
        self._database, self._reader = _opened(self._path)
        self._ticker = Ticker("ledger", self.write)

    def close(self) -> None:
        """Write what is left."""
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None
        for database in (self._database, self._reader):
            if database is not None:
                database.close()

    def add(self, record: RequestRecord, day: int) -> None:
        """Count a finished request."""
        self._add(
            (record.principal, day, record.model),
            (1, record.prompt_tokens, record.completion_tokens),
        )

    def _add(self, entry: Entry, counts: Counts) -> None:
        with self._adding:
            requests, prompt, completion = self._pending.get(entry, (0, 0, 0))
            self._pending[entry] = (
                requests + counts[0],
                prompt + counts[1],
                completion + counts[2],
            )

    def days(self, principal: str, today: int) -> dict[int, int]:
        """Return the tokens a principal used, by day, as far as a budget can reach."""
        if self._reader is None:
            return {}
        first = today - MAX_BUDGET_DAYS + 1
        return dict(self._reader.execute(DAYS, (principal, first)).fetchall())

    def write(self) -> None:
        """Write what came since the last time; what cannot be written is kept for the next."""
        with self._adding:
            pending, self._pending = self._pending, {}
        if not pending or self._database is None:
            return
        try:
            with self._writing, self._database:
                rows = [(*entry, *counts) for entry, counts in pending.items()]
                self._database.executemany(ADD, rows)
        except BaseException:
            for entry, counts in pending.items():
                self._add(entry, counts)
            raise

    def usage(self, since: int) -> list[Usage]:
        """Return all that was used from a day on, but for what cannot be written now.  Blocks."""
        if self._database is None:
            return []
        with suppress(sqlite3.Error):  # the ticker tells of it
            self.write()
        with self._writing:
            rows = self._database.execute(ROWS, (since,)).fetchall()
        return [
            Usage(
                principal=principal,
                day=date_of(day).isoformat(),
                model=model,
                requests=requests,
                prompt_tokens=prompt,
                completion_tokens=completion,
            )
            for principal, day, model, requests, prompt, completion in rows
        ]


def date_of(day: int) -> date:
    """Return a day since 1970 as a date."""
    return datetime.fromtimestamp(day * DAY_S, UTC).date()


def _opened(path: Path | None) -> tuple[sqlite3.Connection, sqlite3.Connection | None]:
    if path is not None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            return _connected(str(path)), _connected(str(path))
        except (OSError, sqlite3.Error) as error:
            log.warning(
                "%s: %s; usage is counted until this process ends", path, cause(error, path)
            )
    return _connected(":memory:"), None


def _connected(where: str) -> sqlite3.Connection:
    database = sqlite3.connect(where, timeout=BUSY_S, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(SCHEMA)
        database.execute(ROWS, (0,)).fetchall()  # a damaged page is found now, not by a request
    except sqlite3.Error:
        database.close()
        raise
    return database
