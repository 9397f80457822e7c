"""
Keeps the answers of dialects whose clients come back to them, for gateway and neuron alike.

A request that goes on from a kept answer is joined with it before anyone parses it; the bytes of
an answer that is to be kept are collected as they go by.  Of all other requests nothing is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import BoundedSemaphore
from typing import TypeVar, cast

import attrs
from aiohttp import web

from cortex.api import Dialect, Operation, ReplyDialect, ReplyEncoder
from cortex.chat.events import ChatEvent, Finished
from cortex.config.schema import RepliesSection
from cortex.errors import InvalidRequest, ReplyNotFound
from cortex.reply_store import ReplyStore

MAX_REPLY_BYTES = 16 << 20
MAX_WAITING = 256  # answers that wait to be written
OPERATIONS: frozenset[Operation] = frozenset(
    ("get_reply", "delete_reply", "cancel_reply", "list_inputs")
)
T = TypeVar("T")
log = logging.getLogger(__name__)


class Tee:
    """Collects an answer on its way to the client; `end` keeps it."""

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self._keep = keep
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take what goes by."""
        self._size += len(data)
        if self._size <= MAX_REPLY_BYTES:
            self._pieces.append(data)

    def end(self) -> None:
        """Keep what went by: call it before the last of it is sent, so that it can be asked for."""
        if self._size > MAX_REPLY_BYTES:
            log.warning("an answer of %d bytes is too large to be kept", self._size)
        else:
            self._keep(b"".join(self._pieces))


class TeedEncoder:
    """A `cortex.api.ReplyEncoder` whose bytes a tee sees."""

    def __init__(self, encoder: ReplyEncoder, tee: Tee) -> None:
        self.content_type = encoder.content_type
        self.keep_alive = encoder.keep_alive
        self._encoder = encoder
        self._tee = tee

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:
        data = self._encoder.feed(event, choice)
        self._tee.feed(data)
        if isinstance(event, Finished):  # the only one: an answer that is kept has one choice
            self._tee.end()
        return data


@attrs.frozen
class Turn:
    """
    A request as it goes on: whole, whatever it went on from.

    Attributes:
        tee: Wants the bytes of the answer, if that is to be kept.
    """

    body: bytes
    tee: Tee | None = None

    def teed(self, encoder: ReplyEncoder) -> ReplyEncoder:
        """Return *encoder*, seen by the tee if there is one."""
        return encoder if self.tee is None else TeedEncoder(encoder, self.tee)


class Replies:
    """The kept answers of this process; opened when the first is kept or asked for."""

    def __init__(self, limits: RepliesSection) -> None:
        self._limits = limits
        self._store: ReplyStore | None = None
        self._thread = ThreadPoolExecutor(1, "replies")
        self._waiting = BoundedSemaphore(MAX_WAITING)

    async def join(self, name: str, dialect: Dialect, body: bytes, owner: str = "") -> Turn:
        """
        Return a request to *dialect*, called *name*, joined with the answers it goes on from.

        Those have to be *owner*'s, and its own will be.

        Raises:
            InvalidRequest: It cannot be read, or one of them is not kept.
        """
        if not any(endpoint.operation == "get_reply" for endpoint in dialect.endpoints):
            return Turn(body)
        replies = cast("ReplyDialect", dialect)
        ties = replies.ties(body)
        if ties.replies:
            body = await self._do(
                lambda: replies.join(body, self._records(name, owner, ties.replies))
            )
        if not ties.keep or not self._limits.max_count:
            return Turn(body)
        return Turn(body, Tee(partial(self._keep, name, replies, body, owner)))

    async def serve(
        self,
        request: web.Request,
        name: str,
        dialect: Dialect,
        operation: Operation,
        owner: str = "",
    ) -> web.Response:
        """
        Answer a request of *owner* for one of `OPERATIONS`.

        Raises:
            ReplyNotFound: Nothing of theirs is kept under its id.
        """
        replies = cast("ReplyDialect", dialect)
        body = await self._do(lambda: self._answer(request, name, owner, replies, operation))
        return web.Response(body=body, content_type="application/json")

    async def close(self, _: web.Application | None = None) -> None:
        """Keep what is still to be kept, and close the database."""
        await self._do(self._close)
        self._thread.shutdown()

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _keep(
        self, name: str, dialect: ReplyDialect, body: bytes, owner: str, reply: bytes
    ) -> None:
        if self._waiting.acquire(blocking=False):
            self._thread.submit(self._put, name, dialect, body, owner, reply)
        else:
            log.warning("the disk is too slow to keep every answer: one is not kept")

    # In the thread, in the order they were asked for.

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _opened(self) -> ReplyStore:
        if self._store is None:
            self._store = ReplyStore(self._limits)
        return self._store

    def _put(self, name: str, dialect: ReplyDialect, body: bytes, owner: str, reply: bytes) -> None:
        try:
            if (kept := dialect.record(body, reply)) is not None:
                self._opened().put(name, *kept, owner)
        except Exception:
            log.exception("an answer could not be kept")
        finally:
            self._waiting.release()

    def _records(self, name: str, owner: str, reply_ids: Sequence[str]) -> Mapping[str, bytes]:
        return self._opened().get(name, reply_ids, owner) if self._limits.max_count else {}

    def _answer(
        self,
        request: web.Request,
        name: str,
        owner: str,
        dialect: ReplyDialect,
        operation: Operation,
    ) -> bytes:
        reply_id = request.match_info["id"]
        record = self._records(name, owner, (reply_id,)).get(reply_id)
        if record is None:
            raise ReplyNotFound(f"no answer is kept under {reply_id!r}", param="id")
        match operation:
            case "delete_reply":
                self._opened().delete(name, reply_id, owner)
                return dialect.render_deleted(reply_id)
            case "cancel_reply":
                raise InvalidRequest(f"{reply_id!r} is not in the background: it has ended")
            case "list_inputs":
                return dialect.render_inputs(record, request.query)
            case _:
                return dialect.render_reply(record, request.query)
