"""A torch harness without HTTP around it, and checkpoints small enough to load in a blink."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import attrs
import pytest
import pytest_asyncio

from cortex.fleet.model import Checkpoint, ModelSpec
from cortex.fleet.node import Device
from cortex.neuron.harnesses.torch import TorchHarness, TorchOptions
from tests.neuron.engine.tiny import save_tiny
from tests.neuron.serving import serving

CPU = (Device(index=0, kind="cpu"),)


@attrs.define
class Host:
    """A `HarnessHost` that keeps what it is told."""

    devices: tuple[Device, ...]
    tasks: list[asyncio.Task] = attrs.field(factory=list)
    device_states: list[str] = attrs.field(factory=list)
    model_states: list[tuple[str, str]] = attrs.field(factory=list)
    told: asyncio.Event = attrs.field(factory=asyncio.Event)

    def spawn(self, work, name):
        self.tasks.append(asyncio.create_task(work, name=name))
        return self.tasks[-1]

    def device_changed(self, _, state):
        self.device_states.append(state)
        self._wake()

    def model_changed(self, model_id, status, _error=None):
        self.model_states.append((model_id, status))
        self._wake()

    def _wake(self):
        self.told.set()
        self.told = asyncio.Event()

    async def until(self, condition, timeout_s=60):
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self.told.wait()


def start(devices=CPU, **options):
    """Return a harness, its host, and how to stop it."""
    host = Host(devices)
    harness = TorchHarness(TorchOptions(**{"threads": 1, **options}), host)

    async def stop():
        await harness.aclose()
        for task in host.tasks:
            task.cancel()
        await asyncio.wait(host.tasks, timeout=20)

    return harness, host, stop


@asynccontextmanager
async def running_harness(**options):
    """Yield a harness and its host; its worker is gone afterwards."""
    harness, host, stop = start(**options)
    try:
        yield harness, host
    finally:
        await stop()


@attrs.frozen
class Source:
    """Has one checkpoint, whatever the model is called."""

    checkpoint: Checkpoint

    def fetch(self, _spec, _report):
        return self.checkpoint


@asynccontextmanager
async def running_neuron(checkpoint, devices=CPU, **options):
    """Yield a neuron with nothing but this harness, whose every model is *checkpoint*."""
    async with serving(
        harnesses=("torch",),
        options={"torch": {"threads": 1, **options}},
        devices=devices,
        source=Source(checkpoint),
    ) as node:
        yield node


async def load(harness, checkpoint, model_id="tiny", **spec):
    return await harness.load(ModelSpec(id=model_id, **spec), checkpoint, 0, lambda _: None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def harness(tiny_llama):
    """A harness the tests of a module share, with `tiny` loaded; none of them ends its worker."""
    harness, _, stop = start(max_sequences=8)
    await load(harness, tiny_llama)
    yield harness
    await stop()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory):
    return save_tiny("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def without_gradients():
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def one_thread():
    """On cores that others want too, threads of so small a model mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
