"""
Asks one server over HTTP, on this host.

Each request has a connection of its own: some servers close kept ones at any moment, and on this
host a new one costs next to nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from cortex.api import ChatClient
from cortex.dialects.openai_chat.client import OpenAIChatClient
from cortex.errors import CortexError, UpstreamDied, UpstreamFailed
from cortex.wire import encode

CONNECT_S = 5.0
ASK_S = 60.0
JSON = {"Content-Type": "application/json"}


class Asking:
    """
    Requests to the server at *url*, which serves *model*.

    Attributes:
        chat_path: Where chats go.
    """

    chat_path = OpenAIChatClient.path

    def __init__(self, url: str, model: str) -> None:
        self.url = url
        self.model = model
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        )

    async def is_well(self, path: str, timeout_s: float) -> bool:
        """Tell whether it answers *path* with 200."""
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(self.url + path, timeout=limit) as answer:
                return answer.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def text(self, path: str, timeout_s: float) -> str:
        """Return what it answers; nothing if it does not, or does with an error."""
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(self.url + path, timeout=limit) as answer:
                return await answer.text() if answer.status == HTTPStatus.OK else ""
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            return ""

    async def get(self, path: str) -> dict[str, Any]:
        """Return what it answers, a JSON object."""
        return await self._json("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what it answers to a JSON object."""
        return await self._json("POST", path, encode(body))

    async def _json(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        limit = aiohttp.ClientTimeout(total=ASK_S)
        try:
            async with self._session.request(
                method, self.url + path, data=body, headers=JSON, timeout=limit
            ) as answer:
                data = await answer.read()
        except TimeoutError:
            raise UpstreamFailed(f"the server says nothing to {path} for {ASK_S:g} s") from None
        except aiohttp.ClientError as error:
            raise died(error) from None
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise self.error(answer.status, data)
        try:
            return msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise UpstreamFailed(f"{path}: the server answered no JSON object: {error}") from None

    @staticmethod
    def error(status: int, body: bytes) -> CortexError:
        """Return what an answer with an error status says."""
        return OpenAIChatClient().read_error(status, body)

    @asynccontextmanager
    async def stream(
        self, client: ChatClient, body: bytes
    ) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
        """
        Ask for a stream, and yield it; leaving closes its connection.

        There is no limit to its silence: whoever watches the server ends it, and so the stream.

        Raises:
            CortexError: What it answered instead, or that it died; the latter comes out of the
                stream, too.
        """
        try:
            answer = await self._session.post(self.url + client.path, data=body, headers=JSON)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise died(error) from None
        try:
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise client.read_error(answer.status, await answer.read())
            yield _pieces(answer)
        finally:
            answer.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in answer.content.iter_any():
            yield piece
    except aiohttp.ClientError as error:
        raise died(error) from None


def died(error: Exception) -> UpstreamDied:
    """Return the error of a request whose server is gone."""
    return UpstreamDied(f"the server is gone: {type(error).__name__}: {error}")
