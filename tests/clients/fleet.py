"""A gateway and a neuron with harness `scripted`, over sockets, on a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import attrs
import uvloop

from cortex.chat.request import ChatRequest
from cortex.config.schema import AuthSection, UpstreamEntry
from cortex.fleet.model import ModelSpec
from cortex.testing import until
from tests.clients import scripted
from tests.gateway.running import Running, running
from tests.neuron.serving import Served, serving


@attrs.define
class Fleet:
    """
    What clients ask.

    Attributes:
        url: The gateway's address, without a path.
        neuron_url: The neuron's, which is a complete server itself.
        harness: Says what arrived.
        speaks: The one dialect of the server, as `fleet` has it.
    """

    url: str
    neuron_url: str
    harness: scripted.Scripted
    gateway: Running
    loop: asyncio.AbstractEventLoop
    speaks: str | None = None

    @property
    def last(self) -> ChatRequest:
        """The last request that arrived."""
        return self.harness.requests[-1]

    def forget(self) -> None:
        """Forget what was asked, and for how long a node wanted to be left alone."""
        self.harness.forget()
        for node in self.gateway.gateway.nodes:
            node.resting.clear()

    def until(self, condition) -> None:
        """Wait, on the servers' thread, for *condition*; it must come true within seconds."""
        asyncio.run_coroutine_threadsafe(until(condition), self.loop).result(10)


@contextmanager
def fleet(
    script: str,
    models: Sequence[ModelSpec],
    aliases: Mapping[str, str] | None = None,
    plugins: Sequence[object] = (),
    speaks: str | None = None,
    auth: AuthSection | None = None,
) -> Iterator[Fleet]:
    """
    Run both until left.

    Args:
        script: Where the script is, as ``module:NAME``.
        models: The catalogue; the gateway loads them all as they are asked for.
        aliases: Other names of them.
        plugins: What both load besides.
        speaks: The one dialect of the server behind the gateway, which then is no neuron to it
            and has the models loaded; None is a neuron.
        auth: Who may ask.
    """
    models = [attrs.evolve(model, harness="scripted") for model in models]
    started, found, problem = threading.Event(), [], []

    async def serve() -> None:
        options = {"scripted": {"script": script}}
        node = serving(plugins=[scripted, *plugins], harnesses=["scripted"], options=options)
        more = {"aliases": aliases, "plugins": plugins, "auth": auth}
        async with node as neuron, gateway_of(neuron, models, speaks, **more) as gateway:
            harness = neuron.neuron.models.harnesses["scripted"]
            loop, leave = asyncio.get_running_loop(), asyncio.Event()
            found.append((Fleet(gateway.url, neuron.url, harness, gateway, loop, speaks), leave))
            started.set()
            await leave.wait()

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        except BaseException as error:  # noqa: BLE001 - it is the test's, not this thread's
            problem.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=work, name="fleet")
    thread.start()
    started.wait(20)
    try:
        if found:
            yield found[0][0]
    finally:
        if found:
            found[0][0].loop.call_soon_threadsafe(found[0][1].set)
        thread.join(20)
        assert not thread.is_alive()
        if problem:
            raise problem[0]


@asynccontextmanager
async def gateway_of(
    neuron: Served, models: Sequence[ModelSpec], speaks: str | None, **more: Any
) -> AsyncIterator[Running]:
    """Run the gateway before *neuron*; arguments as of `fleet`."""
    if speaks is None:
        async with running(neuron.url, models=models, **more) as gateway:
            yield gateway
        return
    for model in models:
        body = {"model_id": model.id, "harness": "scripted", "context": model.context}
        await neuron.post("/models/load", **body)
    upstream = UpstreamEntry(name="other", endpoint=neuron.url, dialects=(speaks,))
    async with running(models=[], upstreams=[upstream], **more) as gateway:
        yield gateway
