"""One inference request through the gateway: peek, resolve, route, relay, record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, cast

import attrs
import msgspec
from aiohttp import web

from cortex import resumption
from cortex.api import ChatDialect, Dialect
from cortex.chat.request import RequestHead
from cortex.errors import CortexError, UpstreamDied, UpstreamUnreachable
from cortex.fleet.model import ModelSpec
from cortex.gateway.affinity import affinity_of
from cortex.gateway.auth import check_model
from cortex.gateway.catalogue import Names
from cortex.gateway.hold import Hold
from cortex.gateway.kept import Kept
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.poller import poll
from cortex.gateway.recording import Recording
from cortex.gateway.relay import Exchange, Refused
from cortex.gateway.resume import Rest, Resumed, rest_of
from cortex.gateway.router import Router
from cortex.gateway.tail import Tail
from cortex.gateway.translation import Translated, Translators
from cortex.replies import Replies, Tee
from cortex.resumption import pack
from cortex.web import error_response, id_headers, read_body
from cortex.wire import decode, encode

if TYPE_CHECKING:
    from cortex.spans import Span

ATTEMPTS = 2
STALE_S = 1.0  # a neuron that goes later than that had the request
FORWARDED = (
    *("accept", "content-type", "user-agent", "traceparent", "tracestate"),
    *("anthropic-beta", "anthropic-version"),
)
log = logging.getLogger(__name__)


class Peek(msgspec.Struct):
    """All the gateway reads of a body."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    stream: bool | None = None


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_peek = msgspec.json.Decoder(Peek).decode


@attrs.frozen(kw_only=True)
class Asked:
    """What a client asks for, the same at every try; *name* is what it calls the model."""

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


async def serve(
    request: web.Request,
    dialect: Dialect,
    recording: Recording,
    *,
    names: Names,
    nodes: Nodes,
    router: Router,
    replies: Replies,
    translators: Translators,
    resumes: bool,
) -> web.StreamResponse:
    """
    Answer *request* from the fleet.

    A node that refuses, or dies without a word, is not asked again while it stays as it is: the
    request goes elsewhere, once.  If there is nowhere else, its refusal is the answer.

    Raises:
        CortexError: The client has not seen a byte yet.
    """
    body = await read_body(request)
    peek = decode(_peek, body)
    recording.asked = peek.model
    spec = names.resolve(peek.model)
    check_model(recording.principal, peek.model, spec.id)
    recording.model = spec.id
    affinity = affinity_of(request.headers, body) if router.reads_affinity else ""
    head = recording.head(bool(peek.stream), affinity)
    turn = await replies.join(recording.dialect, dialect, body, head.principal)
    streams = head.stream and head.operation == "chat"
    hold = Hold(request, cast("ChatDialect", dialect), turn.body) if streams else None
    recording.hold = hold
    asked = Asked(
        request=request,
        dialect=dialect,
        head=head,
        spec=spec,
        name=peek.model,
        body=turn.body,
        tee=turn.tee,
        hold=hold,
        resumes=resumes,
        span=recording.span,
    )
    try:
        return await ask(asked, recording, nodes, router, translators)
    except CortexError as error:
        if hold is None or not hold.is_open:
            raise
        recording.status, recording.code = error.status, error.code
        return hold.end(error)


async def ask(
    asked: Asked,
    recording: Recording,
    nodes: Nodes,
    router: Router,
    translators: Translators,
) -> web.StreamResponse:
    """
    Ask a node, and another if need be.

    Raises:
        CortexError: The client has not seen a byte yet, or keep-alives only.
    """
    head, spec = asked.head, asked.spec
    node: Node | None = None
    nodes.retries.request()
    for attempt in range(1, ATTEMPTS + 1):
        node, how = await route(asked, recording, router, avoid=node)
        is_last = attempt == ATTEMPTS
        how = how if attempt == 1 else "retried"
        try:
            exchange, sent = prepare(asked, node, how, translators, is_last)
            recording.exchange = exchange
            if isinstance(exchange, Translated) and (answer := exchange.nothing()) is not None:
                recording.status, recording.outcome = answer.status, "ok"
                return answer
            await carry(exchange, node, sent)
        except UpstreamUnreachable as error:
            if exchange.was_sent:
                nodes.failed(node, spec.id, str(error))
            else:
                nodes.refused(node, str(error))
            if is_last or not nodes.retries.take():
                raise
        except Refused:
            await poll(node, nodes)
            is_only = router.is_only(node, head)
            node.rest(spec.id, exchange.retry_after_s)
            if is_only or not nodes.retries.take():
                if asked.hold is not None and asked.hold.is_open:
                    raise exchange.error() from None
                recording.status = exchange.status
                return exchange.refusal()
        else:
            break
        finally:
            router.leave(node, spec.id)
    rest = await resumed(asked, exchange, recording, nodes, router)
    return concluded(rest or exchange, asked.dialect, recording)


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


async def route(
    asked: Asked, recording: Recording, router: Router, avoid: Node | None
) -> tuple[Node, str]:
    """Do as `Router.route`, and record where the request goes and how long it waited for that."""
    since = perf_counter()
    try:
        node, how = await router.route(asked.head, asked.spec, asked.hold, avoid)
    finally:
        recording.waited(since)
    recording.goes_to(node.name, how)
    return node, how


def concluded(exchange: Exchange, dialect: Dialect, recording: Recording) -> web.StreamResponse:
    """Return what is to return of an answer that was carried: whole, or broken off."""
    recording.status = exchange.status
    if exchange.failed is not None:
        at = recording.node
        log.warning("node %s died in request %s: %s", at, recording.id, exchange.failed)
        died = UpstreamDied(f"node {at} died while it answered")
        recording.code = died.code
        render = getattr(dialect, "render_stream_error", None)  # embeddings have no streams
        return exchange.break_off(render(died, recording.id) if render else b"")
    recording.outcome = "ok" if exchange.is_success else "error"
    return exchange.response()


def ended(
    request: web.Request, dialect: Dialect, recording: Recording, why: CortexError
) -> web.StreamResponse:
    """Return what is to return of a request that somebody else than its client cancelled."""
    exchange, hold = recording.exchange, recording.hold
    if not request.writer.output_size:
        response = error_response(request, why)
        recording.status = response.status
        return response
    if exchange is None or not exchange.status or exchange.refused:
        if hold is None or not hold.is_open:
            raise asyncio.CancelledError
        recording.status = why.status
        return hold.end(why)
    recording.status = exchange.status
    if exchange.is_whole:
        recording.outcome = "ok" if exchange.is_success else "error"
        return exchange.response()
    render = getattr(dialect, "render_stream_error", None)  # embeddings have no streams
    return exchange.break_off(render(why, recording.id) if render else b"")


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
    if begun:
        headers += f"{resumption.HEADER}: {begun}\r\n"
    headers += f"x-cortex-usage: 1\r\nx-cortex-joined: 1\r\ncontent-length: {len(body)}\r\n"
    target = node.client.prefix + (path or request.rel_url.raw_path_qs).encode()
    first = b"POST %b HTTP/1.1\r\n%b" % (target, node.client.head)
    return b"%b%b\r\n%b" % (first, headers.encode("latin-1", "replace"), body)


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
