"""One inference request through the gateway: peek, resolve, route, relay, record."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, cast

import msgspec
from aiohttp import web

from cortex.api import ChatDialect, Dialect
from cortex.errors import CortexError, UpstreamDied, UpstreamUnreachable
from cortex.gateway.affinity import affinity_of
from cortex.gateway.asking import Asked, carry, prepare, refuse_unseen
from cortex.gateway.auth import check_model
from cortex.gateway.catalogue import Names
from cortex.gateway.hold import Hold
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.poller import poll
from cortex.gateway.recording import Recording
from cortex.gateway.relay import Exchange, Refused
from cortex.gateway.resume import resumed
from cortex.gateway.router import Router
from cortex.gateway.translation import Translated, Translators
from cortex.replies import Replies
from cortex.web import error_response, read_body
from cortex.wire import decode

if TYPE_CHECKING:
    pass

ATTEMPTS = 2
log = logging.getLogger(__name__)


class Peek(msgspec.Struct):
    """All the gateway reads of a body."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    stream: bool | None = None


_peek = msgspec.json.Decoder(Peek).decode


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
        seeing=names.seeing(recording.principal),
    )
    if head.operation == "chat" and names.is_blind(spec.id):
        refuse_unseen(asked)  # before it is loaded for that
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
