"""What gateway and neuron share: plugins' lifespans, and the end of a listening server."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, closing
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request

import cortex
from cortex.api import Endpoint
from cortex.config.schema import Address, PluginSettings
from cortex.connection import check_free
from cortex.errors import ConfigError
from cortex.plugins import Plugins
from cortex.testing import VirtualLoop
from cortex.web import BODY_IDLE_S, add_dialects, application, lifespans, listening, read_body


class Living:
    def __init__(self, said: list[str], name: str, breaks: str = "") -> None:
        self.said, self.name, self.breaks = said, name, breaks

    @cortex.hookimpl
    def cortex_lifespan(self, role):
        if self.breaks == "hook":
            raise RuntimeError
        return self.life(role)

    @asynccontextmanager
    async def life(self, role):
        if self.breaks == "start":
            raise RuntimeError
        self.said.append(f"{self.name} in {role}")
        yield
        self.said.append(f"{self.name} out")
        if self.breaks == "end":
            raise RuntimeError


@pytest.mark.parametrize("breaks", ["hook", "start", "end"])
async def test_a_lifespan_that_breaks_stops_neither_us_nor_the_others(breaks):
    plugins, said = Plugins(PluginSettings(only=frozenset())), []
    plugins.manager.register(Living(said, "a"))
    plugins.manager.register(Living(said, "bad", breaks))
    plugins.manager.register(Living(said, "z"))

    async with lifespans(plugins, "gateway"):
        said.append("between")

    others = [line for line in said if not line.startswith("bad")]
    assert others == ["a in gateway", "z in gateway", "between", "z out", "a out"]


async def test_an_address_that_is_taken_is_said_in_a_sentence():
    async with listening(application(), Address("127.0.0.1", 0), drain_s=0) as taken:
        with pytest.raises(ConfigError) as caught:
            async with listening(application(), taken, drain_s=0):
                pass

    assert str(caught.value) == (
        f"cannot listen on {taken}: address already in use (stop what holds it, or use --listen)"
    )


def test_a_port_taken_for_ipv4_is_free_for_ipv6():
    with socket.socket() as taken, socket.socket(socket.AF_INET6) as other:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        address = Address("::", taken.getsockname()[1])
        check_free(address, "--port")
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind((address.host, address.port))
        other.listen()
        with pytest.raises(ConfigError, match=r"(?i)address already in use .*--port"):
            check_free(address, "--port")


class Versioned:
    """A dialect that only says which version it is."""

    endpoints = (Endpoint("GET", "/api/version", "version"),)

    def render_version(self, version: str) -> bytes:
        return f'{{"version": "9 of {version}"}}'.encode()


async def test_a_dialect_may_say_its_version(aiohttp_client):
    app = application()
    add_dialects(app, {"versioned": Versioned()}, server=None)
    client = await aiohttp_client(app)
    async with client.get("/api/version") as response:
        assert response.content_type == "application/json"
        assert await response.json() == {"version": f"9 of {cortex.__version__}"}


def test_a_body_that_trickles_in_is_taken_however_long_it_takes():
    loop = VirtualLoop()
    began = loop.time()

    async def trickle(content: aiohttp.StreamReader) -> None:
        for _ in range(5):
            await asyncio.sleep(BODY_IDLE_S - 1)
            content.feed_data(b"piece ")
        content.feed_eof()

    async def read() -> bytes:
        content = aiohttp.StreamReader(Mock(_reading_paused=False), 1 << 16, loop=loop)
        request = make_mocked_request("POST", "/", payload=content)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(trickle(content))
            return await read_body(request)

    with closing(loop):
        assert loop.run_until_complete(read()) == b"piece " * 5
        assert loop.time() - began == 5 * (BODY_IDLE_S - 1)
