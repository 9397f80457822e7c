"""What one node is asked for a client, its own words or translated; and carrying its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import attrs
import msgspec
from aiohttp import web

from cortex import resumption
from cortex.api import ChatDialect, Dialect
from cortex.chat.request import RequestHead
from cortex.chat.turns import refuse_images
from cortex.errors import UpstreamUnreachable
from cortex.fleet.model import ModelSpec
from cortex.gateway.hold import Hold
from cortex.gateway.kept import Kept
from cortex.gateway.node import Node
from cortex.gateway.relay import Exchange, Refused
from cortex.gateway.tail import Tail
from cortex.gateway.translation import Translated, Translators
from cortex.replies import Tee
from cortex.web import id_headers
from cortex.wire import decode, encode

if TYPE_CHECKING:
    from cortex.spans import Span

MOST_NAMED = 5  # models, in a hint
STALE_S = 1.0  # a neuron that goes later than that had the request
FORWARDED = (
    *("accept", "content-type", "user-agent", "traceparent", "tracestate"),
    *("anthropic-beta", "anthropic-version"),
)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@attrs.frozen(kw_only=True)
class Asked:
    """
    What a client asks for, the same at every try.

    Attributes:
        name: What it calls the model.
        seeing: Models it may use instead that see images.
    """

    request: web.Request
    dialect: Dialect
    head: RequestHead
    spec: ModelSpec
    name: str
    body: bytes
    tee: Tee | None
    hold: Hold | None
    resumes: bool
    span: Span | None
    seeing: Sequence[str] = ()


def prepare(
    asked: Asked, node: Node, how: str, translators: Translators, is_last: bool
) -> tuple[Exchange, bytes]:
    """Return what will carry the answer of *node*, and the request as it gets it."""
    head = asked.head
    headers = {
        **id_headers(asked.request),
        "x-cortex-node": node.name,
        "x-cortex-model": head.model,
        "x-cortex-route": how,
    }
    spoken = translators.spoken(node, head)
    renamed = node.is_upstream and asked.name != head.model and translators.can(spoken, head)
    if spoken == head.dialect and not renamed:  # answers repeat the name the client used
        body = splice(asked.body, head.model) if node.is_upstream else asked.body
        kept = Kept() if asked.resumes and asked.hold is not None else None
        exchange = Exchange(
            asked.request,
            headers,
            is_last=is_last,
            tee=asked.tee,
            hold=asked.hold,
            tail=Tail() if node.is_upstream else None,
            kept=kept,
        )
        return exchange, compose(asked, node, body)
    between = translators.between(asked.dialect, spoken, asked.body, head.id)
    translated = Translated(
        asked.request,
        headers,
        is_last=is_last,
        tee=asked.tee,
        hold=asked.hold,
        translation=between,
    )
    known = node.models.get(head.model)
    body = between.body(head.model, known.limit.context if known else 0)
    return translated, compose(asked, node, body, between.client.path)


async def carry(exchange: Exchange, node: Node, request: bytes) -> None:
    """
    Ask *node* and carry its answer.

    Raises:
        UpstreamUnreachable: It took no connection, or died without a word.
        Refused: It will not answer this now; the client has seen nothing.
    """
    node.exchanges.add(exchange)
    try:
        connection = await node.client.acquire()
        is_reused = connection.reused
        await exchange.run(connection, node.client, request)
        is_stale = is_reused and exchange.silent_s < STALE_S
        if exchange.is_silent and is_stale:  # the neuron closed it while it lay in the pool
            await exchange.run(await node.client.acquire(fresh=True), node.client, request)
        if exchange.is_silent:
            raise UpstreamUnreachable(f"node {node.name} died without an answer")
        node.breaker.closes()
        if exchange.refused:
            raise Refused
    finally:
        node.exchanges.discard(exchange)


def refuse_unseen(asked: Asked) -> None:
    """
    Refuse images to a model that sees none, as its node would once it is loaded.

    Raises:
        VisionUnsupported: There is one.
        InvalidRequest: As the dialect says it.
    """
    if b"image" not in asked.body:
        return
    chat = cast("ChatDialect", asked.dialect).parse_request(asked.body, asked.head.id)
    seeing = ", ".join(asked.seeing[:MOST_NAMED])
    refuse_images(chat.messages, asked.head.model, f"these do: {seeing}" if seeing else "")


def compose(
    asked: Asked, node: Node, body: bytes, path: str | None = None, begun: int = 0
) -> bytes:
    """
    Return the request as *node* gets it.

    Args:
        asked: By the client.
        node: Who is asked.
        body: What it gets.
        path: The client's, if no other is named.
        begun: How much of the body is what was said of the answer.
    """
    request, head = asked.request, asked.head
    given: Mapping[str, str] = request.headers
    if asked.span is not None:
        given = asked.span.propagate(given, FORWARDED)
    headers = "".join(f"{name}: {given[name]}\r\n" for name in FORWARDED if name in given)
    headers += f"x-request-id: {head.id}\r\nx-cortex-model: {head.model}\r\n"
    if not node.is_upstream:
        headers += f"x-cortex-principal: {head.principal}\r\n"
        if head.priority:
            headers += f"x-cortex-priority: {head.priority}\r\n"
        if head.weight != 1:
            headers += f"x-cortex-weight: {head.weight}\r\n"
        if asked.seeing and head.model not in asked.seeing:
            headers += f"x-cortex-seeing: {', '.join(asked.seeing[:MOST_NAMED])}\r\n"
    if begun:
        headers += f"{resumption.HEADER}: {begun}\r\n"
    headers += f"x-cortex-usage: 1\r\nx-cortex-joined: 1\r\ncontent-length: {len(body)}\r\n"
    target = node.client.prefix + (path or request.rel_url.raw_path_qs).encode()
    first = b"POST %b HTTP/1.1\r\n%b" % (target, node.client.head)
    return b"%b%b\r\n%b" % (first, headers.encode("utf-8", "surrogateescape"), body)


def splice(body: bytes, model: str) -> bytes:
    """
    Return *body* for a server that knows nothing of our aliases, nor of the answers we keep.

    What it goes on from is in it already.
    """
    fields = decode(_fields, body)
    went_on = fields.pop("previous_response_id", None)
    if went_on is None and msgspec.json.decode(fields["model"]) == model:
        return body
    fields["model"] = msgspec.Raw(encode(model))
    return encode(fields)
