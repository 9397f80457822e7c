"""
Goes on with a stream whose node died: another node says the rest, and the client sees a pause.

What the client has got is read back with the client half of its dialect, and written again; only
where that gives the same bytes is it known what was said, and how the stream has to go on.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from time import time
from typing import cast

import attrs
from aiohttp import web

from cortex.api import ChatClient, ChatDialect, ReplyDecoder, ReplyEncoder
from cortex.chat.events import ChatEvent, Started, TextDelta, ThinkingDelta
from cortex.chat.request import ChatRequest
from cortex.errors import CortexError, UpstreamUnreachable
from cortex.gateway import relay
from cortex.gateway.asking import Asked, carry, compose
from cortex.gateway.hold import Hold
from cortex.gateway.neuron_client import Connection, NeuronClient
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.poller import poll
from cortex.gateway.recording import Recording
from cortex.gateway.relay import Exchange, Refused
from cortex.gateway.router import Router
from cortex.gateway.translation import Translated, Translation
from cortex.replies import Tee
from cortex.resumption import Said, pack

log = logging.getLogger(__name__)
CREATED = re.compile(rb'"created(?:_at)?":"?([^",}]+)')


async def resumed(
    asked: Asked, broken: Exchange, recording: Recording, nodes: Nodes, router: Router
) -> Exchange | None:
    """Have another node that has the model say the rest of a stream that broke off."""
    if broken.failed is None or broken.kept is None:
        return None
    dead, hold, kept = nodes.get(recording.node), asked.hold, broken.kept.whole()
    if not kept or dead is None or hold is None:
        return None
    dialect = cast("ChatDialect", asked.dialect)
    rest = await asyncio.to_thread(rest_of, dialect, asked.body, recording.id, kept)
    if rest is None:
        return None
    hold.goes_on(rest.encoder)
    if dead.healthy:  # as far as is known: nobody waits for one that is not to say so
        await hold.during(poll(dead, nodes))
    able = [n for n in nodes if n is not dead and n.serves(asked.spec.id) and not n.is_upstream]
    return await go_on(asked, rest, dead, recording, router) if able else None


async def go_on(
    asked: Asked, rest: Rest, dead: Node, recording: Recording, router: Router
) -> Exchange | None:
    """Carry the rest of an answer from another node than *dead*; None if it cannot be had."""
    broken = recording.exchange
    assert asked.hold is not None and broken is not None  # noqa: S101, PT018 - a stream has broken
    try:
        node, _ = await router.route(asked.head, asked.spec, asked.hold, avoid=dead)
    except CortexError:
        return None
    try:
        if node is dead or node.is_upstream:
            return None
        exchange = Resumed(asked.request, rest, broken, tee=asked.tee, hold=asked.hold)
        recording.exchange, recording.node = exchange, node.name
        body, begun = pack(asked.body, rest.said)
        await carry(exchange, node, compose(asked, node, body, begun=begun))
    except (UpstreamUnreachable, Refused) as error:
        log.warning("node %s does not go on with %s: %r", node.name, recording.id, error)
        recording.exchange, recording.node = broken, dead.name
        return None
    finally:
        router.leave(node, asked.spec.id)
    recording.resumed = True
    log.warning(
        "node %s died in request %s, %s went on: %s",
        *(dead.name, recording.id, node.name, broken.failed),
    )
    return exchange


@attrs.frozen(kw_only=True)
class Rest:
    """
    What is to come of an answer.

    Attributes:
        said: What has come.
        encoder: Of the answer, as it stands after that.
    """

    chat: ChatRequest
    dialect: ChatDialect
    client: ChatClient
    said: Said
    encoder: ReplyEncoder


def rest_of(dialect: ChatDialect, body: bytes, request_id: str, kept: bytes) -> Rest | None:
    """
    Return what is to come of an answer; None if another node cannot say it.

    Args:
        dialect: The client's.
        body: Its request.
        request_id: Of that.
        kept: What it has got.
    """
    client: ChatClient | None = getattr(dialect, "client", None)
    chat = dialect.parse_request(body, request_id)
    if client is None or not can_resume(chat):
        return None
    encoder = dialect.encoder(chat, created_of(kept))
    thoughts: list[str] = []
    texts: list[str] = []
    written: list[bytes] = []
    for _, event in client.decoder(chat).feed(kept):
        match event:
            case Started():
                pass
            case ThinkingDelta(text) if not texts:
                thoughts.append(text)
            case TextDelta(text):
                texts.append(text)
            case _:  # a call, an end, thoughts behind text
                return None
        written.append(encoder.feed(event))
    alive = encoder.keep_alive()
    if not written or b"".join(written).replace(alive, b"") != kept.replace(alive, b""):
        return None
    said = Said(thought="".join(thoughts), text="".join(texts))
    return Rest(chat=chat, dialect=dialect, client=client, said=said, encoder=encoder)


def can_resume(chat: ChatRequest) -> bool:
    """Tell whether the rest of an answer would be what the whole had been."""
    sampling, last = chat.sampling, chat.messages[-1:]
    return (
        bool(last)
        and last[0].role != "assistant"
        and chat.n == 1
        and chat.format is None
        and chat.tool_choice.mode != "required"
        and sampling.logprobs is None
        and sampling.seed is None
    )


def created_of(kept: bytes) -> int:
    """Return when the neuron says it began."""
    found = CREATED.search(kept)
    try:
        said = found[1].decode() if found else ""
        return int(said) if said.isdigit() else int(datetime.fromisoformat(said).timestamp())
    except ValueError:
        return int(time())


class Continued:
    """A decoder whose answer has begun already."""

    def __init__(self, decoder: ReplyDecoder) -> None:
        self._decoder = decoder

    def feed(self, data: bytes) -> Sequence[tuple[int, ChatEvent]]:
        return [e for e in self._decoder.feed(data) if not isinstance(e[1], Started)]

    def end(self) -> Sequence[tuple[int, ChatEvent]]:
        return self._decoder.end()


class Resumed(Translated):
    """The rest of an answer on its way, behind what the client has."""

    def __init__(
        self, request: web.Request, rest: Rest, broken: Exchange, *, tee: Tee | None, hold: Hold
    ) -> None:
        between = Translation(chat=rest.chat, dialect=rest.dialect, client=rest.client)
        super().__init__(request, {}, is_last=True, tee=tee, hold=hold, translation=between)
        self.first_byte_s, self.events = broken.first_byte_s, broken.events
        self._stall_s = relay.STALL_S
        self._encoder = rest.encoder

    async def run(self, connection: Connection, client: NeuronClient, request: bytes) -> None:
        self.status = 0
        decoder = self._between.client.decoder(self._between.chat)
        self._decoder = cast("ReplyDecoder", Continued(decoder))
        await Exchange.run(self, connection, client, request)

    def _answer_begins(self) -> None:
        if self.status >= HTTPStatus.BAD_REQUEST:
            self.refused = True
        else:
            self._open(self.status, self._encoder.content_type)
