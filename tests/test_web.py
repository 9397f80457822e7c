"""What gateway and neuron share: plugins' lifespans, and the end of a listening server."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

import cortex
from cortex.api import Endpoint
from cortex.config.schema import Address, PluginSettings
from cortex.errors import ConfigError
from cortex.plugins import Plugins
from cortex.web import add_dialects, application, lifespans, listening


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
