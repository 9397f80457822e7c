"""One inference request on the neuron: parse, start, stream."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from time import time

from aiohttp import web

from cortex.api import Dialect, ReplyEncoder
from cortex.chat.events import ChatEvent, Failed, Finished, Usage
from cortex.errors import CortexError
from cortex.neuron.models import Models
from cortex.web import read_body
from cortex.wire import encode

KEEP_ALIVE_S = 5.0
log = logging.getLogger(__name__)


async def serve(
    request: web.Request, dialect: Dialect, models: Models, node: str
) -> web.StreamResponse:
    """
    Answer *request*.

    The status is decided before the first byte: what goes wrong until the harness has started is
    an HTTP error, after that an event in the stream.  The first byte is the first token's.

    A gateway asks for the usage with ``x-cortex-usage`` and gets it in a dialect-free form: as a
    header of a whole body, as a comment before the last event of a stream.
    """
    request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
    chat = dialect.parse_request(await read_body(request), request_id)
    events = models.serving(chat.model).generate(chat)
    encoder = dialect.encoder(chat, int(time()))
    headers = {"x-request-id": request_id, "x-cortex-node": node}
    try:
        started = await anext(events)  # ends with the worker at the latest
        if not chat.stream:
            body, usage = await whole(started, events, encoder)
            headers["x-cortex-usage"] = encode(usage).decode()
            return web.Response(body=body, content_type=encoder.content_type, headers=headers)
        response = web.StreamResponse(headers={**headers, "Cache-Control": "no-cache"})
        response.content_type = encoder.content_type
        await response.prepare(request)
        await response.write(b"")  # the status goes out now
        data = encoder.feed(started)
        async for event in paced(events):
            data += encoder.keep_alive() if event is None else encoder.feed(event)
            if isinstance(event, Finished) and "x-cortex-usage" in request.headers:
                data = b": cortex-usage %b\n\n" % encode(event.usage) + data
            if data:
                await response.write(data)
            data = b""
        return response
    finally:
        await events.aclose()


async def whole(
    started: ChatEvent, events: AsyncIterator[ChatEvent], encoder: ReplyEncoder
) -> tuple[bytes, Usage]:
    """Return the body of an answer that is not streamed; what breaks it is raised."""
    body, usage = encoder.feed(started), None
    async for event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            usage = event.usage
        body += encoder.feed(event)
    if usage is None:
        raise CortexError("the answer broke off")
    return body, usage


async def paced(
    events: AsyncGenerator[ChatEvent, None],
) -> AsyncGenerator[ChatEvent | None, None]:
    """
    Yield *events*, and None each time nothing came for `KEEP_ALIVE_S`.

    A stream that breaks off without an end gets one that says so.
    """
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait({coming}, timeout=KEEP_ALIVE_S))[0]:
                yield None
            event = coming.result()
        except CortexError as error:
            event = Failed(error)
        except Exception:
            log.exception("a harness failed in the middle of an answer")
            event = Failed(CortexError("internal error; the log has the cause"))
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})  # a generator ends at once when cancelled
        event = event or Failed(CortexError("the answer broke off"))
        yield event
        if isinstance(event, Finished | Failed):
            return
