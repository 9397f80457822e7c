"""One inference request on the neuron: parse, start, stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic, time
from typing import TYPE_CHECKING, cast

import attrs
from aiohttp import web

from cortex.api import (
    ChatDialect,
    CountDialect,
    Dialect,
    EmbeddingDialect,
    Harness,
    Operation,
    ReplyEncoder,
)
from cortex.chat.events import ChatEvent, Failed, Finished, Started, Usage, total_usage
from cortex.chat.request import ChatRequest
from cortex.errors import CortexError, InvalidRequest
from cortex.fleet.principal import MAX_WEIGHT, MIN_WEIGHT
from cortex.neuron.models import Models
from cortex.replies import Turn
from cortex.resumption import resumed, unpack
from cortex.web import Stream, id_headers, request_id
from cortex.wire import encode

if TYPE_CHECKING:
    from cortex.spans import Span

KEEP_ALIVE_S = 5.0
Choice = tuple[int, ChatEvent]
log = logging.getLogger(__name__)


async def serve(
    request: web.Request,
    turn: Turn,
    dialect: Dialect,
    operation: Operation,
    *,
    models: Models,
    node: str,
    span: Span | None = None,
) -> web.StreamResponse:
    """
    Answer *request*, whose body is *turn*.

    A gateway, which knows aliases, names the model in ``x-cortex-model``; answers repeat the
    client's name for it.  It asks for the usage with ``x-cortex-usage`` and gets it in a
    dialect-free form: as a header of a whole body, as a trailer of a stream.  Who asks is in
    ``x-cortex-principal``, ``x-cortex-priority`` and ``x-cortex-weight``, and which models see
    images, where this one does not, in ``x-cortex-seeing``.
    """
    headers = {**id_headers(request), "x-cortex-node": node}
    body, wanted = turn.body, request.headers.get("x-cortex-model")
    match operation:
        case "count":
            count = cast("CountDialect", dialect)
            chat = count.parse_count(body, request_id(request))
            model = wanted or chat.model
            tokens = await models.counter(model)(attrs.evolve(chat, model=model))
            usage, answer = Usage(prompt_tokens=tokens), count.render_count(tokens)
        case "embed":
            embedding = cast("EmbeddingDialect", dialect)
            asked = embedding.parse_embedding(body, request_id(request))
            model = wanted or asked.model
            found = await models.serving(model).embed(attrs.evolve(asked, model=model))
            usage = Usage(prompt_tokens=found.prompt_tokens)
            answer = embedding.render_embeddings(asked, found)
        case _:
            body, said = unpack(body, request.headers)
            chat = cast("ChatDialect", dialect).parse_request(body, request_id(request))
            chat = asked_by(resumed(chat, said), request.headers)
            encoder = turn.teed(cast("ChatDialect", dialect).encoder(chat, int(time())))
            model = wanted or chat.model
            if span is not None:
                encoder = span.watching(encoder, model, chat.n)
            harness = models.serving(model)
            asked_for = attrs.evolve(chat, model=model)
            return await answer_chat(request, asked_for, encoder, harness, headers)
    if span is not None:
        span.answered(model, usage)
    headers["x-cortex-usage"] = encode(usage).decode()
    return web.Response(body=answer, content_type="application/json", headers=headers)


def asked_by(chat: ChatRequest, headers: Mapping[str, str]) -> ChatRequest:
    """
    Return *chat* with who asks, as a gateway tells it.

    Raises:
        InvalidRequest: A header has no number, or one out of bounds.
    """
    try:
        priority = int(headers.get("x-cortex-priority", "0"))
        weight = float(headers.get("x-cortex-weight", "1"))
    except ValueError as error:
        raise InvalidRequest(f"x-cortex-priority, x-cortex-weight: {error}") from None
    if not (abs(priority) < 1 << 31 and MIN_WEIGHT <= weight <= MAX_WEIGHT):
        raise InvalidRequest(f"x-cortex-priority {priority}, x-cortex-weight {weight}: too much")
    principal = headers.get("x-cortex-principal", "")
    return attrs.evolve(chat, principal=principal, priority=priority, weight=weight)


async def answer_chat(
    request: web.Request,
    chat: ChatRequest,
    encoder: ReplyEncoder,
    harness: Harness,
    headers: dict[str, str],
) -> web.StreamResponse:
    """
    Answer with text.

    The status is decided before the first byte: what goes wrong until the harness has started is
    an HTTP error, after that an event in the stream.  The first byte is the first token's.
    """
    choices = chat.choices()
    generators = [generate(harness, choice) for choice in choices]
    events = generators[0] if len(generators) == 1 else merged(generators)
    usages: dict[int, Usage] = {}
    try:
        started = await anext(events)  # ends with the worker at the latest
        if not chat.stream:
            body = encoder.feed(started[1], started[0])
            async for choice, event in events:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    usages[choice] = event.usage
                body += encoder.feed(event, choice)
            if len(usages) < len(choices):
                raise CortexError("the answer broke off")
            headers["x-cortex-usage"] = encode(total_usage(usages, chat.n)).decode()
            return web.Response(body=body, content_type=encoder.content_type, headers=headers)
        response = Stream(headers={**headers, "Cache-Control": "no-cache"})
        response.content_type = encoder.content_type
        await response.prepare(request)
        await response.write(b"")  # the status goes out now
        saying = Saying(response, encoder, encoder.feed(started[1], started[0]))
        alive = asyncio.ensure_future(saying.keep_alive())
        try:
            async for choice, event in ended(events, len(choices)):
                if isinstance(event, Finished):
                    usages[choice] = event.usage
                said = encoder.feed(event, choice)
                if len(usages) == len(choices) and "x-cortex-usage" in request.headers:
                    await saying.end(request, said, total_usage(usages, chat.n))
                else:
                    await saying.say(said)
        finally:
            alive.cancel()
            await asyncio.wait({alive})  # ends at once when cancelled
        return response
    finally:
        await events.aclose()


async def generate(harness: Harness, chat: ChatRequest) -> AsyncGenerator[Choice, None]:
    """Yield the events of one answer; a request for nothing is over at once."""
    if not chat.messages and not chat.prompts:
        yield 0, Started(prompt_tokens=0)
        yield 0, Finished(reason="stop", usage=Usage())
        return
    events = harness.generate(chat)
    try:
        async for event in events:
            yield 0, event
    finally:
        await events.aclose()


async def merged(
    generators: Sequence[AsyncGenerator[Choice, None]],
) -> AsyncGenerator[Choice, None]:
    """Yield the events of several answers as they come; the first to fail is the last to come."""
    coming = {asyncio.ensure_future(anext(e, None)): n for n, e in enumerate(generators)}
    try:
        while coming:  # each ends with the workers at the latest
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                number = coming.pop(future)
                if (item := future.result()) is not None:
                    coming[asyncio.ensure_future(anext(generators[number], None))] = number
                    yield number, item[1]
    finally:
        for future in coming:
            future.cancel()
        if coming:
            await asyncio.wait(coming)  # a generator ends at once when cancelled
        for events in generators:
            await events.aclose()


async def ended(events: AsyncIterator[Choice], answers: int) -> AsyncGenerator[Choice, None]:
    """
    Yield *events*, whatever they end with as the last of them.

    Args:
        events: Of all answers.
        answers: How many there are.  A stream that ends before they have ended gets an event that
            says so.
    """
    while answers:
        try:
            item = await anext(events, None)  # ends with the workers at the latest
        except CortexError as error:
            item = 0, Failed(error)
        except Exception:
            log.exception("a harness failed in the middle of an answer")
            item = 0, Failed(CortexError("internal error; the log has the cause"))
        item = item or (0, Failed(CortexError("the answer broke off")))
        yield item
        if isinstance(item[1], Failed):
            return
        answers -= isinstance(item[1], Finished)


class Saying:
    """What a stream says, and that it lives whenever it said nothing for `KEEP_ALIVE_S`."""

    def __init__(self, response: Stream, encoder: ReplyEncoder, first: bytes) -> None:
        self._response = response
        self._encoder = encoder
        self._waiting = first  # goes out with what comes next
        self._said = monotonic()

    async def say(self, data: bytes) -> None:
        """Say *data*, if there is any."""
        if data := self._waiting + data:
            self._waiting = b""
            self._said = monotonic()
            await self._response.write(data)

    async def end(self, request: web.Request, data: bytes, usage: Usage) -> None:
        """Say *data* as the last of it, with its usage."""
        data, self._waiting = self._waiting + data, b""
        await self._response.end(request, data, usage)

    async def keep_alive(self) -> None:
        """Do that until the client is gone, or cancelled."""
        with suppress(ConnectionError):
            while True:
                await asyncio.sleep(max(self._said + KEEP_ALIVE_S - monotonic(), 0))
                if monotonic() >= self._said + KEEP_ALIVE_S:
                    await self.say(self._encoder.keep_alive())
                    self._said = monotonic()
