"""A gateway and a neuron with harness `scripted`, over sockets, on a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs
import uvloop

from cortex.chat.request import ChatRequest
from cortex.fleet.model import ModelSpec
from cortex.testing import until
from tests.clients import scripted
from tests.gateway.running import Running, running
from tests.neuron.serving import serving


@attrs.define
class Fleet:
    """
    What clients ask.

    Attributes:
        url: The gateway's address, without a path.
        neuron_url: The neuron's, which is a complete server itself.
        harness: Says what arrived.
    """

    url: str
    neuron_url: str
    harness: scripted.Scripted
    gateway: Running
    loop: asyncio.AbstractEventLoop

    @property
    def last(self) -> ChatRequest:
        """The last request that arrived."""
        return self.harness.requests[-1]

    def until(self, condition) -> None:
        """Wait, on the servers' thread, for *condition*; it must come true within seconds."""
        asyncio.run_coroutine_threadsafe(until(condition), self.loop).result(10)


@contextmanager
def fleet(
    script: str,
    models: Sequence[ModelSpec],
    aliases: Mapping[str, str] | None = None,
    plugins: Sequence[object] = (),
) -> Iterator[Fleet]:
    """
    Run both until left.

    Args:
        script: Where the script is, as ``module:NAME``.
        models: The catalogue; the gateway loads them all as they are asked for.
        aliases: Other names of them.
        plugins: What both load besides.
    """
    models = [attrs.evolve(model, harness="scripted") for model in models]
    started, found, problem = threading.Event(), [], []

    async def serve() -> None:
        options = {"scripted": {"script": script}}
        node = serving(plugins=[scripted, *plugins], harnesses=["scripted"], options=options)
        async with (
            node as neuron,
            running(neuron.url, models=models, aliases=aliases, plugins=plugins) as gateway,
        ):
            harness = neuron.neuron.models.harnesses["scripted"]
            loop, leave = asyncio.get_running_loop(), asyncio.Event()
            found.append((Fleet(gateway.url, neuron.url, harness, gateway, loop), leave))
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
