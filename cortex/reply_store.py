"""
Answers kept on disk, bounded by number, size and age: one SQLite database in WAL mode.

It blocks: `cortex.replies` keeps it in a thread of its own.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from time import time

from cortex.config.mistakes import cause
from cortex.config.schema import RepliesSection

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    dialect TEXT NOT NULL,
    id TEXT NOT NULL,
    owner TEXT NOT NULL DEFAULT '',  -- whose it is; nobody else gets to see it
    kept REAL NOT NULL,              -- Unix seconds
    size INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (dialect, id)
);
CREATE INDEX IF NOT EXISTS replies_by_age ON replies (kept, size);
"""
PUT = """
INSERT INTO replies (dialect, id, owner, kept, size, record) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (dialect, id) DO UPDATE
SET kept = excluded.kept, size = excluded.size, record = excluded.record
WHERE owner = excluded.owner
"""
GET = "SELECT record FROM replies WHERE dialect = ? AND id = ? AND owner = ? AND kept >= ?"
DELETE = "DELETE FROM replies WHERE dialect = ? AND id = ? AND owner = ? AND kept >= ?"
IN_MEMORY = ":memory:"
BUSY_S = 5.0  # how long to wait for another process that writes
log = logging.getLogger(__name__)


class ReplyStore:
    """
    The kept answers of one process.  Opened by whichever thread builds it, and used only there.

    A place that cannot be used is a warning, and the answers then live as long as the process.
    """

    def __init__(self, limits: RepliesSection, clock: Callable[[], float] = time) -> None:
        self._limits = limits
        self._max_bytes = limits.max_mb << 20
        self._clock = clock
        self._database = opened(limits.path)

    def put(self, dialect: str, reply_id: str, record: bytes, owner: str = "") -> None:
        """
        Keep *record*, and drop what is over the bounds, oldest first.

        An id somebody else has stays theirs: ids follow from what clients call their requests.
        """
        if len(record) > self._max_bytes:
            log.warning("answer %s is larger than all that may be kept", reply_id)
            return
        with self._database:
            self._database.execute("DELETE FROM replies WHERE kept < ?", (self._oldest(),))
            row = (dialect, reply_id, owner, self._clock(), len(record), record)
            if not self._database.execute(PUT, row).rowcount:
                log.warning("answer %s is not kept: somebody else has one of that id", reply_id)
            self._drop()

    def _drop(self) -> None:
        count, size = self._database.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM replies"
        ).fetchone()
        while count > self._limits.max_count or size > self._max_bytes:
            row, gone = self._database.execute(
                "SELECT rowid, size FROM replies ORDER BY kept, rowid LIMIT 1"
            ).fetchone()
            self._database.execute("DELETE FROM replies WHERE rowid = ?", (row,))
            count, size = count - 1, size - gone

    def get(self, dialect: str, reply_ids: Sequence[str], owner: str = "") -> dict[str, bytes]:
        """Return the records *owner* has of some ids."""
        found = {}
        for reply_id in reply_ids:
            rows = self._database.execute(
                GET, (dialect, reply_id, owner, self._oldest())
            ).fetchall()
            if rows:
                found[reply_id] = rows[0][0]
        return found

    def delete(self, dialect: str, reply_id: str, owner: str = "") -> bool:
        """Drop an answer of *owner*; tell whether it was there."""
        with self._database:
            gone = self._database.execute(DELETE, (dialect, reply_id, owner, self._oldest()))
        return gone.rowcount > 0

    def close(self) -> None:
        self._database.close()

    def _oldest(self) -> float:
        return self._clock() - self._limits.ttl_s


def opened(path: Path | None) -> sqlite3.Connection:
    """Return the database at *path*, readable by us alone, or one in memory."""
    if path is None:
        return _connected(IN_MEMORY)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return _connected(str(path))
    except (OSError, sqlite3.Error) as error:
        log.warning("%s: %s; answers are kept until this process ends", path, cause(error, path))
        return _connected(IN_MEMORY)


def _connected(where: str) -> sqlite3.Connection:
    database = sqlite3.connect(where, timeout=BUSY_S)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA secure_delete = ON")  # deleted is gone
        database.executescript(SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database
