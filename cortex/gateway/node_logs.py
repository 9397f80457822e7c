"""A node's log, handed on: the gateway can reach it, and has its token."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from urllib.parse import urlencode

from aiohttp import web

from cortex.config.schema import UpstreamEntry
from cortex.errors import RemoteError, RouteNotFound, UpstreamUnreachable
from cortex.events import KEEP_ALIVE_S, begin, take
from cortex.gateway.node import Node
from cortex.logs import Query
from cortex.web import reply, sse

SILENCE_S = 4 * KEEP_ALIVE_S  # a neuron that is there says so more often
NOT_FOUND = 404


class NodeLogs:
    """Answers for nodes; ends what goes on when the gateway does."""

    def __init__(self) -> None:
        self._following: set[asyncio.Task[object]] = set()

    async def answer(self, request: web.Request, node: Node) -> web.StreamResponse:
        """
        Answer as the node does.

        Raises:
            RouteNotFound: It keeps no log.
            UpstreamUnreachable: It does not answer.
        """
        if isinstance(node.entry, UpstreamEntry):
            raise RouteNotFound(f"{node.name} is no neuron: its log is its own")
        query = Query.of(request.query)
        asked = {name: value for name, value in request.query.items() if name != "node"}
        path = f"/logs?{urlencode(asked)}"
        try:
            if not query.follow:
                return reply(await node.client.get(path, dict))
            return await self._follow(request, node, path)
        except RemoteError as error:
            if error.status != NOT_FOUND:
                raise
            hint = f"update cortex on {node.name}"
            raise RouteNotFound(f"{node.name} keeps no log to ask for", hint=hint) from None

    async def _follow(self, request: web.Request, node: Node, path: str) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a request has one
        self._following.add(task)
        response = None
        try:
            async with aclosing(node.client.follow(path, SILENCE_S)) as pieces:
                async for piece in pieces:
                    response = response or await begin(request)
                    if not await take(request, response, piece):
                        break
        except UpstreamUnreachable as error:
            if response is None:
                raise
            await take(request, response, sse("gone", {"reason": str(error)}))
        finally:
            self._following.discard(task)
        return response or await begin(request)

    def end(self) -> None:
        """End every stream."""
        for task in self._following:
            task.cancel()
