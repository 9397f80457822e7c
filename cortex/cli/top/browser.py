"""
``cortex top --web``: the dashboard in a browser.

Each page has a dashboard of its own, a process that `textual-serve` starts and ends.  Whoever
reaches it acts with our key; so the address is this host's unless another one is named, and only
a page that we served may connect.  A page fetches nothing from anywhere else.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from collections.abc import Iterator
from importlib.resources import files
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from cortex.config.schema import Address
from cortex.errors import CortexError
from cortex.web import listening, until_signal

LEAVE_S = 0.5
HEADERS = {"Content-Security-Policy": "frame-ancestors 'none'", "Cache-Control": "no-store"}


def serve(args: argparse.Namespace) -> int:
    """Serve the dashboard until SIGTERM or SIGINT."""
    asyncio.run(_serve(shlex.join(command(args)), Address(args.host, args.port)))
    return 0


def command(args: argparse.Namespace) -> Iterator[str]:
    """Yield the command of a dashboard in a terminal: this one, without what is about the web."""
    yield sys.executable
    yield from sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    yield "top"
    for option, value in (("--gateway", args.gateway), ("--key", args.key)):
        if value is not None:
            yield f"{option}={value}"
    if args.light:
        yield "--light"


async def _serve(dashboard: str, address: Address) -> None:
    async with listening(pages(dashboard, address.host), address, drain_s=LEAVE_S) as bound:
        print(f"cortex top listens on http://{Address(address.host, bound.port)}, Ctrl-C ends it")
        if not address.is_loopback:
            print("whoever can reach it may do all that your key may", file=sys.stderr)
        sys.stdout.flush()
        await until_signal()


def pages(dashboard: str, host: str) -> web.Application:
    """Return what answers a browser; *dashboard* is the command each page gets a process of."""
    try:
        from textual_serve.server import Server
    except ImportError:
        hint = "pip install 'cortex-fleet[web]', or textual-serve itself"
        raise CortexError("--web needs textual-serve", hint=hint) from None
    server = Server(dashboard)
    page = files("cortex.cli.top").joinpath("page.html").read_text("utf-8")

    async def show(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html", headers=HEADERS)

    async def connect(request: web.Request) -> web.StreamResponse:
        if not is_ours(request.headers.get("Origin", ""), request.host, host):
            raise web.HTTPForbidden(text="open it by its address, or by the name that --host says")
        return await server.handle_websocket(request)

    app = web.Application()
    app.add_routes(
        [
            web.get("/", show),
            web.get("/ws", connect),
            web.get("/download/{key}", server.handle_download),
            web.static("/static", server.statics_path),
        ]
    )
    return app


def is_ours(origin: str, asked: str, host: str) -> bool:
    """
    Return whether a page that connects is one that we served.

    Args:
        origin: Where the browser says it has the page from.
        asked: The host it asks, which has to be the same; a name may have been pointed at us by
            anybody, so it has to be one that we know.
        host: The name we were given.
    """
    try:
        name = urlsplit(origin).hostname or ""
        is_known = name in {"localhost", host} or bool(ip_address(name))
    except ValueError:
        return False
    return is_known and origin.partition("://")[2] == asked
