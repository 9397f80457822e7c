"""
The harness of a kind of server: a process for each model, and requests to it.

It is a `cortex.api.CheckingHarness`, and splits a model over devices where its server can.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from itertools import chain
from time import monotonic
from typing import Any

import attrs

from cortex.api import Count, HarnessHost, Places, Report
from cortex.chat.events import ChatEvent
from cortex.chat.request import ChatRequest, EmbeddingRequest, Embeddings
from cortex.errors import CortexError, ModelNotFound, OperationUnsupported
from cortex.fleet.model import Checkpoint, ModelSpec, ModelStats, RunningModel
from cortex.fleet.node import Device
from cortex_harness_vllm.answers import Answer, filled
from cortex_harness_vllm.engine import Engine, Job
from cortex_harness_vllm.figures import Rates, with_figures
from cortex_harness_vllm.options import ServerOptions
from cortex_harness_vllm.served import Served, require_program


@attrs.define(kw_only=True)
class Model:
    """A model that is loaded, or being so, and what it is doing."""

    served: Served
    places: Places
    defaults: Mapping[str, float]
    running: RunningModel | None = None
    tokens_total: int = 0
    rates: Rates = attrs.field(factory=Rates)

    @property
    def embeds(self) -> bool:
        return self.running is not None and "embedding" in self.running.capabilities


class ServerHarness:
    """See the module."""

    needs_weights = True

    def __init__(self, engine: Engine, options: ServerOptions, host: HarnessHost) -> None:
        self._engine = engine
        self._options = options
        self._host = host
        self._models: dict[str, Model] = {}

    async def check(self, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        require_program(self._engine, self._options)
        self._engine.check(spec, checkpoint)

    def local_bytes(self, spec: ModelSpec, checkpoint: Checkpoint | None) -> int:
        """Return what this host has to hold of a model: one over several hosts is shared out."""
        hosts = self._engine.hosts(self._options.args_for(spec.id))
        if spec.vram_mb and hosts > 1:
            return spec.vram_mb << 20
        whole = max(checkpoint.size_bytes if checkpoint else 0, (spec.vram_mb or 0) << 20)
        return whole // hosts

    async def load(
        self, spec: ModelSpec, checkpoint: Checkpoint | None, device: int, report: Report
    ) -> RunningModel:
        return await self.split(spec, checkpoint, (device,), report)

    async def split(
        self,
        spec: ModelSpec,
        checkpoint: Checkpoint | None,
        devices: Sequence[int],
        report: Report,
    ) -> RunningModel:
        """Do as `load` over *devices*, of which each gets a share of the model."""
        assert checkpoint is not None  # noqa: S101 - needs_weights
        self._engine.check(spec, checkpoint)
        await self.unload(spec.id)  # what is left of one that failed
        served = Served(
            self._engine, self._job(spec, checkpoint, devices), self._options, self._host
        )
        model = self._models[spec.id] = Model(
            served=served,
            places=Places(self._options.max_in_flight),
            defaults=dict(chain(checkpoint.sampling.items(), spec.defaults.items())),
        )
        try:
            model.running = await served.start(report)
        except CortexError:
            await self.unload(spec.id)  # its memory is free again when we say that it failed
            raise
        return model.running

    def _job(self, spec: ModelSpec, checkpoint: Checkpoint, devices: Sequence[int]) -> Job:
        found = [device for device in self._host.devices if device.index in devices]
        found = found or [Device(index=0, kind="cpu")]
        return Job(
            spec=spec,
            checkpoint=checkpoint,
            devices=tuple(devices),
            kind=found[0].kind,
            total_mb=min(device.vram_total_mb for device in found),
            free_mb=min(device.vram_free_mb for device in found),
            args=self._options.args_for(spec.id),
            memory_fraction=self._options.memory_fraction,
        )

    async def unload(self, model_id: str) -> None:
        if (model := self._models.get(model_id)) is not None:
            await model.served.end()
            self._models.pop(model_id, None)

    async def aclose(self) -> None:
        await asyncio.gather(*map(self.unload, [*self._models]))

    def _model(self, name: str, *, embeds: bool) -> Model:
        model = self._models.get(name)
        if model is None or model.running is None:
            raise ModelNotFound(f"model {name!r} is not loaded")
        if model.embeds != embeds:
            can = ("text, no embeddings", "embeddings, no text")[model.embeds]
            raise OperationUnsupported(f"model {name!r} makes {can}", param="model")
        return model

    async def generate(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        model = self._model(request.model, embeds=False)
        asked = filled(request, model.defaults)
        async with model.places.take():
            answer = Answer(self._engine, model.served.ask(), asked)
            try:
                async with aclosing(answer.events()) as events:
                    async for event in events:
                        model.served.heard = monotonic()
                        yield event
            finally:
                model.tokens_total += answer.tokens
                if (usage := answer.usage) is not None:
                    model.rates.take(usage, answer.tokens)

    async def count(self, request: ChatRequest) -> int:
        model = self._model(request.model, embeds=False)
        return await Answer(self._engine, model.served.ask(), request).count()

    async def counter(self, spec: ModelSpec, checkpoint: Checkpoint | None) -> Count:  # noqa: ARG002
        if spec.id not in self._models:
            raise OperationUnsupported(
                f"harness {self._engine.name!r} counts tokens of loaded models only",
                hint=f"load {spec.id} first",
            )
        return self.count

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        model = self._model(request.model, embeds=True)
        inputs = [text if isinstance(text, str) else list(text) for text in request.inputs]
        async with model.places.take():
            asking = model.served.ask()
            said = await asking.post(
                "/v1/embeddings",
                {"model": asking.model, "input": inputs, "encoding_format": "float"},
            )
        rows: list[dict[str, Any]] = sorted(said["data"], key=lambda row: int(row["index"]))
        return Embeddings(
            vectors=tuple(shortened(row["embedding"], request.dimensions) for row in rows),
            prompt_tokens=int((said.get("usage") or {}).get("prompt_tokens") or 0),
        )

    def stats(self, model_id: str) -> ModelStats:
        if (model := self._models.get(model_id)) is None:
            return ModelStats()
        stats = ModelStats(
            in_flight=model.places.taken,
            queue_depth=model.places.waiting,
            max_in_flight=self._options.max_in_flight,
            tok_s_prefill=round(model.rates.prefill, 1),
            tok_s_decode=round(model.rates.decode, 1),
            tokens_total=model.tokens_total,
            body=model.served.body,
        )
        return with_figures(stats, model.served.figures)


def shortened(vector: Sequence[float], dimensions: int | None) -> tuple[float, ...]:
    """Return the first components of a vector, of length one again."""
    if dimensions is None or dimensions >= len(vector):
        return tuple(vector)
    kept = vector[:dimensions]
    length = math.hypot(*kept) or 1.0
    return tuple(part / length for part in kept)
