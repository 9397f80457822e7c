"""
The dashboard's line to the gateway: its stream of events, what is asked, what is told.

Every wait is bounded, a silent stream by three times the gateway's keep-alive; what goes wrong is
a `CortexError`, the same as of the other commands.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self, TypeVar

import aiohttp

from cortex.cli.client import ANSWER_S, MAX_ERROR_BYTES, Gateway
from cortex.dialects.sse import Event, SseReader

T = TypeVar("T")
EVENTS = "/api/v1/events"
CONNECT_S = 10.0
SILENCE_S = 45.0
OK, REDIRECTED = 200, 300


class Link:
    """``async with Link(gateway) as link``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._gateway.headers,
            trust_env=not self._gateway.is_loopback,
            connector=aiohttp.TCPConnector(limit=0),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def events(self) -> AsyncGenerator[Event, None]:
        """
        Yield name and data of what the gateway tells; close the generator to hang up.

        Raises:
            CortexError: It is not there, refuses, or has gone silent or away.
        """
        limits = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=SILENCE_S)
        reader = SseReader()
        async with self._answer("GET", EVENTS, None, limits, SILENCE_S) as response:
            async for piece in response.content.iter_any():
                for event in reader.feed(piece):
                    yield event
        raise self._gateway.unreachable(ConnectionResetError(), SILENCE_S)

    async def get(self, cls: type[T], path: str) -> T:
        """Return the JSON body of a GET, read into *cls*."""
        return self._gateway.decode(cls, path, await self._ask("GET", path, None, ANSWER_S))

    async def tell(
        self, method: str, path: str, body: Mapping[str, object] | None, timeout_s: float
    ) -> dict[str, object]:
        """Have the gateway do something, and return what it answers."""
        answer = await self._ask(method, path, body, timeout_s)
        return self._gateway.decode(dict, path, answer)

    async def _ask(
        self, method: str, path: str, body: Mapping[str, object] | None, timeout_s: float
    ) -> bytes:
        limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        async with self._answer(method, path, body, limits, timeout_s) as response:
            return await response.read()

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        limits: aiohttp.ClientTimeout,
        timeout_s: float,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        gateway = self._gateway
        try:
            async with self._session.request(
                method, gateway.url + path, json=body, timeout=limits, allow_redirects=False
            ) as response:
                if not OK <= response.status < REDIRECTED:
                    said = await response.content.read(MAX_ERROR_BYTES)
                    raise gateway.refusal(
                        f"{method} {path}",
                        response.status,
                        response.reason,
                        said,
                        response.headers.get("Location"),
                    )
                yield response
        except aiohttp.ClientConnectorError as error:
            raise gateway.unreachable(error.os_error, timeout_s) from None
        except aiohttp.ClientPayloadError:
            raise gateway.unreachable(ConnectionResetError(), timeout_s) from None
        except aiohttp.ServerDisconnectedError:
            raise gateway.unreachable(ConnectionResetError(), timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            raise gateway.unreachable(error, timeout_s) from None
