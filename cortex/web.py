"""
What gateway and neuron both do with aiohttp: listen, answer errors in the client's dialect, stream.

After an answer has begun no exception may reach aiohttp: it would append a page of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from math import ceil
from time import time
from typing import Any, Protocol, TypeVar, cast

import attrs
import msgspec
import uvloop
from aiohttp import HttpVersion11, web

from cortex import __version__, log_lines
from cortex.api import Dialect, Endpoint, ModelsDialect, Operation, VersionDialect
from cortex.chat.events import Usage
from cortex.config.schema import Address
from cortex.connection import accept
from cortex.errors import (
    ConfigError,
    CortexError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    RequestTimeout,
    RequestTooLarge,
    RouteNotFound,
)
from cortex.fleet.model import ModelCard
from cortex.hookspecs import Role
from cortex.plugins import Plugins
from cortex.registry import did_you_mean, nearest
from cortex.wire import decode, encode

MAX_BODY_BYTES = 64 << 20
BODY_IDLE_S = 60.0
ALIKE = 0.8  # a path without its /v1, or with two, is as near to what was meant
STOPS = (signal.SIGTERM, signal.SIGINT)
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_ID = web.RequestKey("id", str)
BEGAN = int(time())  # what `created` of a model row says: Unix seconds
log = logging.getLogger(__name__)


def application(*middlewares: Any) -> web.Application:
    """Return an application with our body limit, and errors inside *middlewares* answered."""
    return web.Application(
        client_max_size=MAX_BODY_BYTES, middlewares=[answer_errors, *middlewares]
    )


@attrs.frozen
class Route:
    """A dialect's claim on a method and path."""

    endpoint: Endpoint
    name: str
    dialect: Dialect

    def matches(self, request: web.Request) -> bool:
        """Tell whether a request, whose method and path fit, is meant."""
        header = self.endpoint.header
        return header is None or header in request.headers


ROUTES = web.AppKey("routes", Mapping[str, Sequence[Route]])  # by path; where absent, `FALLBACK`
BY_HEADER = web.AppKey("by_header", Sequence[Route])  # for any other path
FALLBACK = web.AppKey("fallback", Dialect)


def reply(value: object, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.Response(body=encode(value), status=status, content_type="application/json")


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into the error of the dialect its route belongs to."""
    allow = ""
    try:
        return await handler(request)
    except CortexError as error:
        problem = error
    except web.HTTPException as error:
        problem, allow = explain(request, error), error.headers.get("Allow", "")
    except ConnectionResetError:
        raise asyncio.CancelledError from None  # the client left between two writes
    except Exception:
        log.exception("%s %s", request.method, request.path)
        problem = CortexError("internal error; the log has the cause")
    if request.writer.output_size:  # an answer is on the wire: no other may follow
        raise asyncio.CancelledError  # closes the connection
    response = error_response(request, problem)
    if allow:
        response.headers["Allow"] = allow
    return response


def explain(request: web.Request, error: web.HTTPException) -> CortexError:
    """Return our error for one aiohttp raised."""
    match error:
        case web.HTTPNotFound():
            hint = nearest(request.path, request.app[ROUTES].keys(), ALIKE)
            return RouteNotFound(f"no such path: {request.path}", hint=hint)
        case web.HTTPMethodNotAllowed():
            allowed = error.headers["Allow"].replace(",", ", ")
            return MethodNotAllowed(f"{request.path} takes {allowed}, not {request.method}")
        case _:
            return CortexError(error.reason)


def error_response(request: web.Request, error: CortexError) -> web.Response:
    """Render an error in the dialect of the request's route."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource else request.path
    routes = request.app[ROUTES].get(path, request.app[BY_HEADER])
    matching = (route.dialect for route in routes if route.matches(request))
    dialect = next(matching, request.app[FALLBACK])
    status, body = dialect.render_error(error, request_id(request))
    response = web.Response(body=body, status=status, content_type="application/json")
    response.headers.update(id_headers(request))
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, ceil(error.retry_after_s)))
    return response


def request_id(request: web.Request) -> str:
    """Return the client's request id, or a new one, the same for the life of the request."""
    if (known := request.get(REQUEST_ID)) is None:
        given = request.headers.get("x-request-id", "")
        is_plain = given.isascii() and given.isprintable()  # in headers, JSON and logs
        known = given if given and is_plain else f"{random.getrandbits(128):032x}"
        request[REQUEST_ID] = known
    return known


def id_headers(request: web.Request) -> dict[str, str]:
    """Return the headers that name a request: ours and OpenAI's, and Anthropic's."""
    return dict.fromkeys(("x-request-id", "request-id"), request_id(request))


class InferenceServer(Protocol):
    """Who answers behind the dialects: a gateway or a neuron."""

    async def serve(
        self, request: web.Request, name: str, dialect: Dialect, operation: Operation
    ) -> web.StreamResponse: ...
    def cards(self, request: web.Request, /) -> Sequence[ModelCard]: ...


def add_dialects(
    app: web.Application, dialects: Mapping[str, Dialect], server: InferenceServer
) -> None:
    """
    Route every endpoint of *dialects*, by name, to *server*.

    Of two that share a path the one that asks for a header is asked first.

    Raises:
        ConfigError: Two dialects claim one method and path.
    """
    routes: dict[tuple[str, str], list[Route]] = {}
    for name, dialect in dialects.items():
        for endpoint in dialect.endpoints:
            sharing = routes.setdefault((endpoint.method, endpoint.path), [])
            for other in sharing:
                if other.endpoint.header == endpoint.header:
                    raise ConfigError(
                        f"dialects {other.name!r} and {name!r} both claim"
                        f" {endpoint.method} {endpoint.path}"
                    )
            sharing.append(Route(endpoint, name, dialect))
    by_path: dict[str, list[Route]] = {}
    for (method, path), sharing in routes.items():
        sharing.sort(key=lambda route: route.endpoint.header is None)
        resource = app.router.add_route(method, path, _handler(sharing, server)).resource
        by_path.setdefault(resource.canonical if resource else path, []).extend(sharing)
    app[ROUTES] = by_path
    every = [route for sharing in routes.values() for route in sharing]
    app[BY_HEADER] = [route for route in every if route.endpoint.header]
    app[FALLBACK] = dialects.get("openai-chat", next(iter(dialects.values())))


def _handler(routes: Sequence[Route], server: InferenceServer) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        route = next((route for route in routes if route.matches(request)), None)
        if route is None:
            raise RouteNotFound(f"{request.path} wants the header {routes[0].endpoint.header}")
        models = cast("ModelsDialect", route.dialect)
        operation = route.endpoint.operation
        match operation:
            case "list_models":
                body = models.render_models(server.cards(request), BEGAN, request.query)
            case "list_loaded":
                loaded = [card for card in server.cards(request) if card.loaded]
                body = models.render_loaded(loaded, BEGAN)
            case "get_model":
                if request.method == "POST":
                    wanted = models.parse_model(await read_body(request))
                else:
                    wanted = request.match_info["model"]
                body = models.render_model(find_card(server.cards(request), wanted), BEGAN)
            case "version":
                body = cast("VersionDialect", route.dialect).render_version(__version__)
            case _:
                return await server.serve(request, route.name, route.dialect, operation)
        return web.Response(body=body, content_type="application/json")

    return handle


def find_card(cards: Sequence[ModelCard], wanted: str) -> ModelCard:
    """
    Return the card of a model.

    Raises:
        ModelNotFound: With the nearest name there is.
    """
    by_id = {card.id: card for card in cards}
    if wanted not in by_id:
        raise ModelNotFound(
            f"no model is called {wanted!r}", hint=did_you_mean(wanted, by_id), param="model"
        )
    return by_id[wanted]


async def read_body(request: web.Request) -> bytes:
    """
    Read a body.

    Raises:
        RequestTooLarge: It is over `MAX_BODY_BYTES`, as sent or as unpacked.
        InvalidRequest: It is not framed or packed as its headers say.
        RequestTimeout: No more of it has come for `BODY_IDLE_S`.
    """
    try:
        if (request.content_length or 0) <= MAX_BODY_BYTES:
            return await (request.read() if request.content.is_eof() else _read_slowly(request))
    except web.HTTPRequestEntityTooLarge:
        pass
    except web.RequestPayloadError:
        raise InvalidRequest("the body is not framed or packed as its headers say") from None
    except TimeoutError:
        raise RequestTimeout(f"no more of the body came for {BODY_IDLE_S:g} s") from None
    raise RequestTooLarge(f"the body is over {MAX_BODY_BYTES >> 20} MiB")


async def _read_slowly(request: web.Request) -> bytes:
    """Read a body that is still coming."""
    loop, body = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(BODY_IDLE_S) as deadline:
        while piece := await request.content.readany():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(body))
            deadline.reschedule(loop.time() + BODY_IDLE_S)
    return bytes(body)


async def read_json(request: web.Request, kind: type[T]) -> T:
    """Read a body of our own API into *kind*; raises as `read_body` and `cortex.wire.decode`."""
    return decode(msgspec.json.Decoder(kind).decode, await read_body(request) or b"{}")


class Stream(web.StreamResponse):
    """An answer that goes out as it comes."""

    async def end(self, request: web.Request, last: bytes, usage: Usage) -> None:
        """
        End the answer with *last* and its usage in a trailer, which only who asked for it reads.

        Both go out at once: a client that leaves at the last event takes no usage with it.
        """
        if request.transport is None or request.version < HttpVersion11:
            await self.write(last)
            return
        chunk = b"%x\r\n%b\r\n" % (len(last), last) if last else b""
        trailer = b"0\r\nx-cortex-usage: %b\r\n\r\n" % encode(usage)
        request.transport.write(chunk + trailer)
        self._eof_sent = True


def sse(event: str, data: object) -> bytes:
    """Return one server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), encode(data))


@asynccontextmanager
async def listening(
    app: web.Application,
    address: Address,
    *,
    drain_s: float,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Address]:
    """
    Serve *app* while inside; yields the address with the port the system chose.

    Args:
        app: What to serve.
        address: Where.
        drain_s: How long open requests may go on once left, in seconds.
        tls: For https; see `cortex.tls`.

    Raises:
        ConfigError: The address is taken or not ours.
    """
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        shutdown_timeout=max(drain_s, 0.001),  # 0 would be for ever
    )
    await runner.setup()
    try:
        server = await accept(runner, address, tls)
        try:
            host, port = server.sockets[0].getsockname()[:2]
            yield Address(host, port)
        finally:
            server.close()
    finally:
        await runner.cleanup()


@asynccontextmanager
async def lifespans(plugins: Plugins, role: Role) -> AsyncIterator[None]:
    """
    Enter what plugins return from ``cortex_lifespan``; leave it in reverse order.

    What one raises is logged and dropped.
    """
    async with AsyncExitStack() as stack:
        for lifespan in plugins.gather("cortex_lifespan", role=role):
            await stack.enter_async_context(_guarded(lifespan))
        yield


@asynccontextmanager
async def _guarded(lifespan: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(lifespan)
        except Exception:
            log.exception("cortex_lifespan %r did not start", lifespan)
        yield
        try:
            await stack.aclose()
        except Exception:
            log.exception("cortex_lifespan %r did not end well", lifespan)


def run(main: Coroutine[Any, Any, None], log_level: str, log_format: str) -> None:
    """Run *main* on its event loop, with `cortex.log_lines`; raise a `ConfigError` as it is."""
    log_lines.begin(log_level, log_format)
    try:
        uvloop.run(main)
    except ExceptionGroup as group:  # `except*` wraps what is raised in it, before Python 3.11.4
        mistakes, others = group.split(ConfigError)
        if mistakes is None or others is not None:
            raise
        raise mistakes.exceptions[0] from None


async def until_signal(again: Callable[[], None] | None = None) -> str:
    """
    Wait for SIGTERM or SIGINT; return its name.

    Args:
        again: Called at the next ones; else those end the program at once.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str] = loop.create_future()

    def tell(name: str) -> None:
        if not told.done():
            told.set_result(name)
        elif again is not None:
            again()

    for number in STOPS:
        loop.add_signal_handler(number, tell, number.name)
    name = await told
    if again is None:
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)
    return name
