"""Runs a source in a thread of its own, and ends it when nobody waits any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

from cortex.api import Report, Source
from cortex.errors import ConfigError, InvalidRequest
from cortex.fleet.model import Checkpoint, ModelSpec, Progress

Check = Callable[[Checkpoint], Awaitable[None]]


class FetchCancelled(Exception):
    """Raised inside a source's thread to end a fetch nobody wants any more."""


async def fetch(
    source_of: Callable[[ModelSpec], Source],
    spec: ModelSpec,
    report: Report,
    *,
    text_only: bool = False,
    check: Check | None = None,
) -> Checkpoint:
    """
    Bring a model's files to this host.

    Args:
        source_of: Chooses the source.
        spec: The model.
        report: Called on the event loop.
        text_only: What it takes to read tokenizer and chat template is enough.
        check: Asked on the event loop, where the source brings the text side first, before it
            goes on to the weights; what it raises ends the fetch.

    Raises:
        CortexError: There is no such source, what the source says, or *check*.
    """
    loop, gone = asyncio.get_running_loop(), threading.Event()
    checks: set[asyncio.Task[None] | None] = set()

    async def checked(ask: Check, text: Checkpoint) -> None:
        if gone.is_set():
            raise FetchCancelled
        checks.add(asyncio.current_task())
        await ask(text)

    def tell(progress: Progress) -> None:
        if gone.is_set():
            raise FetchCancelled
        loop.call_soon_threadsafe(report, progress)
        if check is not None and progress.text is not None:
            asyncio.run_coroutine_threadsafe(checked(check, progress.text), loop).result()

    try:
        source = source_of(spec)
    except ConfigError as error:
        raise InvalidRequest(str(error), param="source") from None
    more = {"text_only": True} if text_only else {}
    try:
        return await asyncio.to_thread(source.fetch, spec, tell, **more)
    finally:
        gone.set()
        for task in filter(None, checks):
            task.cancel()  # it would hold the thread
