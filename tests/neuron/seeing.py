"""A neuron whose models see, without their engine: what would be asked of it is kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import msgspec

from cortex.fleet.model import Checkpoint
from cortex.fleet.node import Device
from cortex.neuron.engine import jobs
from cortex.neuron.engine.pictures import Sight
from cortex.neuron.harnesses import torch
from tests.neuron.engine.conftest import Source
from tests.neuron.serving import serving
from tests.neuron.text.test_pictures import SEEING, TOKENIZER

SIGHT = Sight(token=4, patch=16, merge=2, least_pixels=1024, most_pixels=1 << 20)
CONTEXT = 1500
CPU = (Device(index=0, kind="cpu"),)


class FakeWorker:
    """A device worker that answers at once, and keeps what it was asked."""

    def __init__(self, index, kind, watcher, **_):
        self.index, self.pid = index, 1
        self.figures, self.tokens_total = {}, Counter()
        self.asked: list[jobs.Generate] = []
        self.may_begin, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_begin.set()
        self.may_end.set()

    async def supervise(self):
        await asyncio.Event().wait()

    def text(self, path):
        sight = SIGHT if Path(path).name == "seeing" else None
        return jobs.TextFiles(
            tokenizer=TOKENIZER, chat_template=SEEING, special_tokens={}, sampling={}, sight=sight
        )

    async def load(self, job, _):
        text = self.text(job.path)
        return jobs.Loaded(model=job.model, used_bytes=1 << 20, context=CONTEXT, text=text)

    async def read_text(self, path):
        return self.text(path)

    async def check(self, _, ranks):
        pass

    async def unload(self, _):
        pass

    async def ask(self, job):
        self.asked.append(msgspec.structs.replace(job, pictures=[*job.pictures]))
        await self.may_begin.wait()
        yield jobs.Token(job.id, 40)
        await self.may_end.wait()
        times = dict.fromkeys(("queue_ms", "prefill_ms", "decode_ms"), 1.0)
        yield jobs.Done(id=job.id, reason="stop", completion_tokens=1, **times)


@attrs.frozen
class ByName(Source):
    """Has a model that sees as `seeing`, and any other."""

    def fetch(self, spec, _report, *, text_only=False):
        return attrs.evolve(self.checkpoint, path=self.checkpoint.path / spec.id)


@asynccontextmanager
async def seeing_neuron(monkeypatch, folder, **images):
    """Yield a neuron with the models `seeing` and `blind`, and its worker."""
    workers = []

    def worker(*args, **more):
        workers.append(FakeWorker(*args, **more))
        return workers[-1]

    monkeypatch.setattr(torch, "DeviceWorker", worker)
    for name in ("seeing", "blind"):
        (folder / name).mkdir(exist_ok=True)
    checkpoint = Checkpoint(path=folder, format="safetensors", size_bytes=1)
    async with serving(
        harnesses=("torch",),
        options={"torch": {"images": images}},
        devices=CPU,
        source=ByName(checkpoint),
    ) as node:
        for name in ("seeing", "blind"):
            await node.post("/models/load", model_id=name)
        yield node, workers[0]
