"""
The harness that runs models in our own torch engine, one worker process per device.

This half lives in the neuron's process: text in, text out, and never torch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import attrs
import msgspec

from cortex import hookimpl
from cortex.api import Count, Harness, HarnessHost, Places, Register, Report
from cortex.chat.events import ChatEvent, Failed, Finished, Started, Usage
from cortex.chat.request import ChatRequest, EmbeddingRequest, Embeddings
from cortex.errors import (
    ConfigError,
    DeviceUnavailable,
    ModelNotFound,
    OperationUnsupported,
    RepoFetchFailed,
)
from cortex.fleet.model import Checkpoint, ModelSpec, ModelStats, Progress, RunningModel
from cortex.fleet.node import Device, DeviceState
from cortex.neuron.embedding import embed_job, vectors_of
from cortex.neuron.engine import jobs
from cortex.neuron.faults import fault_of
from cortex.neuron.generation import finished, generate_job, whole
from cortex.neuron.groups import Groups, WorkerGroup
from cortex.neuron.images.gallery import Gallery, Shown
from cortex.neuron.images.options import ImageOptions
from cortex.neuron.running import Running, counter, look, text_of
from cortex.neuron.text.answer import Answer
from cortex.neuron.workers import DeviceWorker, error_of

if TYPE_CHECKING:
    from cortex.neuron.images.fetch import Fetcher

NEEDED = (
    *("torch", "transformers", "tokenizers", "jinja2", "gguf", "accelerate", "llguidance"),
    "PIL",
)
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class TorchOptions:
    """
    ``[harness.torch]``.

    Attributes:
        dtype: ``auto``: float32 on a CPU; on a GPU the checkpoint's own, bfloat16 if that is wider.
        device: ``auto`` takes every GPU, or the CPU if there is none.
        kv_cache_fraction: Of the memory that is free once a model's weights are there, the share
            its cache may take, where its ``vram_mb`` is not set.
        max_batch_tokens: Tokens of one step: prompts are computed in pieces of at most so many.
        max_sequences: Requests of one model that run at once; more wait on the neuron.
        speculation: What guesses tokens of answers, to try several in one step: ``off``; ``ngram``:
            what was said before, in prompt or answer; ``auto``: the model's own layer for it, where
            its checkpoint has one, else as ``ngram``.
        draft_tokens: Tokens that are guessed at a time, at most.
        sums: What adds up the parts of models that are split over GPUs: ``auto``: memory that the
            GPUs share, where that is seen to work, and NCCL for the rest; ``nccl``: NCCL alone.
        threads: CPU threads of a worker; 0 lets torch decide.
        watchdog_s: A worker whose step takes longer, or that is silent as long, is replaced.
        images: Those that requests bring for models that see.
        debug_faults: Let any client break a device, for drills; never where others are served.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    kv_cache_fraction: float = 0.9
    max_batch_tokens: int = 2048
    max_sequences: int = 256
    speculation: Literal["off", "ngram", "auto"] = "off"
    draft_tokens: int = 4
    sums: Literal["auto", "nccl"] = "auto"
    threads: int = 0
    watchdog_s: float = 120.0
    images: ImageOptions = attrs.field(factory=ImageOptions)
    debug_faults: bool = False


class TorchHarness:
    """See the module; a `cortex.neuron.workers.Watcher` of its workers."""

    needs_weights = True

    def __init__(self, options: TorchOptions, host: HarnessHost) -> None:
        self._options = options
        self._host = host
        self._models: dict[str, Running] = {}
        self._on: dict[str, DeviceWorker | WorkerGroup] = {}  # also those that are to come
        self._workers: dict[int, DeviceWorker] = {}
        self._gallery = gallery(options.images)
        self._groups = Groups(self._workers, self, host.spawn)
        self._numbers = itertools.count()  # a client may give two requests one id
        if options.debug_faults:
            log.warning("harness.torch.debug_faults: any request may end a device worker")
        for device in self._devices():
            worker = DeviceWorker(
                *(device.index, device.kind, self),
                threads=options.threads,
                watchdog_s=options.watchdog_s,
            )
            self._workers[device.index] = worker
            host.spawn(worker.supervise(), f"worker-{device.index}")

    def _devices(self) -> list[Device]:
        wanted = self._options.device
        found = [d for d in self._host.devices if wanted in ("auto", d.kind)]
        if not found and wanted == "cpu":
            return [Device(index=0, kind="cpu")]
        if not found:
            raise ConfigError(f"harness.torch.device: this host has no {wanted} device")
        return found

    async def load(
        self, spec: ModelSpec, checkpoint: Checkpoint | None, device: int, report: Report
    ) -> RunningModel:
        worker = self._workers.get(device) or next(iter(self._workers.values()))
        return await self._load(spec, checkpoint, worker, report)

    async def split(
        self,
        spec: ModelSpec,
        checkpoint: Checkpoint | None,
        devices: Sequence[int],
        report: Report,
    ) -> RunningModel:
        return await self._load(spec, checkpoint, self._groups.of(devices), report)

    async def _load(
        self,
        spec: ModelSpec,
        checkpoint: Checkpoint | None,
        on: DeviceWorker | WorkerGroup,
        report: Report,
    ) -> RunningModel:
        assert checkpoint is not None  # noqa: S101 - needs_weights
        report(Progress(stage="starting"))

        def stage(name: str, done: int, total: int) -> None:
            report(Progress(stage=name, done=done, total=total))

        job = jobs.Load(
            model=spec.id,
            path=str(checkpoint.path),
            dtype=self._options.dtype,
            quant=spec.load_quant,
            context=spec.context,
            memory_bytes=(spec.vram_mb << 20) // spec.min_devices if spec.vram_mb else None,
            cache_fraction=self._options.kv_cache_fraction,
            max_sequences=self._options.max_sequences,
            max_batch_tokens=self._options.max_batch_tokens,
            speculation=self._options.speculation,
            draft_tokens=self._options.draft_tokens,
            sums=self._options.sums,
        )
        await self.unload(spec.id)  # what is left of a load that was cancelled
        self._on[spec.id] = on
        loaded = await on.load(job, stage)
        worker = on.workers[0] if isinstance(on, WorkerGroup) else on
        try:
            text = await asyncio.to_thread(text_of, loaded.text, job.path)
        except RepoFetchFailed:
            await self.unload(spec.id)
            raise
        log.info("%s on device %d runs %s", spec.id, worker.index, loaded.body)
        defaults = (checkpoint.sampling, loaded.text.sampling, spec.defaults)  # the last wins
        self._models[spec.id] = Running(
            worker=worker,
            text=text,
            context=loaded.context,
            body=loaded.body,
            defaults=dict(itertools.chain(*(d.items() for d in defaults))),
            places=Places(self._options.max_sequences),
            width=loaded.dimensions,
            gallery=self._gallery,
        )
        return RunningModel(
            used_bytes=loaded.used_bytes,
            context=loaded.context,
            capabilities=text.capabilities if loaded.dimensions is None else ("embedding",),
        )

    async def unload(self, model_id: str) -> None:
        self._models.pop(model_id, None)
        if (on := self._on.pop(model_id, None)) is not None:
            await on.unload(model_id)

    async def count(self, request: ChatRequest) -> int:
        return await counter(self._speaking(request.model).text, self._gallery)(request)

    async def counter(self, spec: ModelSpec, checkpoint: Checkpoint | None) -> Count:  # noqa: ARG002
        assert checkpoint is not None  # noqa: S101 - needs_weights
        files = await self._any_worker().read_text(str(checkpoint.path))
        text = await asyncio.to_thread(text_of, files, str(checkpoint.path))
        return counter(text, self._gallery)

    async def check(self, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        with suppress(DeviceUnavailable):  # there is time until the weights are here
            await self._any_worker().check(str(checkpoint.path), spec.min_devices)

    def _any_worker(self) -> DeviceWorker:
        workers = self._workers.values()
        return next((w for w in workers if w.pid is not None), next(iter(workers)))

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        running = self._running(request.model)
        if running.width is None:
            raise OperationUnsupported(
                f"model {request.model!r} makes text, no embeddings", param="model"
            )
        job = await asyncio.to_thread(
            embed_job,
            *(request, running.text.vocabulary),
            context=running.context,
            width=running.width,
            job_id=f"{next(self._numbers)}",
        )
        async with running.places.take(), aclosing(running.worker.ask(job)) as events:
            async for event in events:
                if isinstance(event, jobs.Embedded):
                    vectors = await asyncio.to_thread(vectors_of, event)
                    return Embeddings(vectors=vectors, prompt_tokens=sum(map(len, job.inputs)))
                if isinstance(event, jobs.Lost):
                    raise error_of(event)
        raise AssertionError("a request ends with an event")

    def stats(self, model_id: str) -> ModelStats:
        if (running := self._models.get(model_id)) is None:
            return ModelStats()
        return running.stats(model_id, self._options.max_sequences)

    async def restart(self, device: int) -> None:
        if (worker := self._workers.get(device)) is not None:
            await worker.restart()

    async def aclose(self) -> None:
        self._models.clear()
        self._on.clear()
        self._groups.close()

    async def generate(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        running = self._speaking(request.model)
        with closing(await look(running.text, self._gallery, request)) as shown:
            prompt, grammar = await running.read(request, shown)
            before = prompt.begun if request.resumes else None
            if before is not None and (most := request.sampling.max_tokens):
                left = attrs.evolve(request.sampling, max_tokens=max(most - before.tokens, 0))
                request = attrs.evolve(request, sampling=left)
            job = generate_job(request, prompt, running, f"{next(self._numbers)}", grammar)
            if self._options.debug_faults:
                job = msgspec.structs.replace(job, fault=fault_of(request))
            async with running.places.take():
                yield Started(prompt_tokens=len(prompt.ids), prompt_text=prompt.said)
                answer = running.text.answer(request, prompt)
                if (
                    before is not None and request.sampling.max_tokens == 0
                ):  # all was said but that it was cut off
                    usage = Usage(prompt_tokens=len(prompt.ids))
                    yield whole(Finished(reason="length", usage=usage), before)
                    return
                async with aclosing(self._answer(running, job, answer, shown)) as events:
                    async for event in events:
                        yield whole(event, before) if isinstance(event, Finished) else event

    async def _answer(
        self, running: Running, job: jobs.Generate, answer: Answer, shown: Shown
    ) -> AsyncGenerator[ChatEvent, None]:
        async with aclosing(running.worker.ask(job)) as stream:
            async for event in stream:
                if job.pictures:  # the engine has seen them
                    job.pictures.clear()
                    shown.close()
                match event:
                    case jobs.Token():
                        for said in answer.feed(event):
                            yield said
                        if answer.over:
                            break
                    case jobs.Lost():
                        yield Failed(error_of(event))
                        return
                    case jobs.Done():
                        running.count(len(job.prompt), event)
                        for said in answer.finish(cut=event.reason == "length"):
                            yield said
                        yield finished(job, answer, event)
                        return
        for said in answer.finish():
            yield said
        yield finished(job, answer)

    def _running(self, model: str) -> Running:
        if (running := self._models.get(model)) is None:
            raise ModelNotFound(f"model {model!r} is not loaded")
        return running

    def _speaking(self, model: str) -> Running:
        """Return a model that makes text."""
        running = self._running(model)
        if running.width is not None:
            raise OperationUnsupported(f"model {model!r} makes embeddings, no text", param="model")
        return running

    # What the workers tell.

    def device_changed(self, index: int, state: DeviceState) -> None:
        self._host.device_changed(index, state)

    def model_lost(self, model: str) -> None:
        self._host.model_changed(model, "recovering")

    def model_back(self, model: str, loaded: jobs.Loaded) -> None:
        if (running := self._models.get(model)) is not None:  # there may be less memory than before
            running.context, running.body = loaded.context, loaded.body
        self._host.model_changed(model, "loaded")

    def model_failed(self, model: str, error: str) -> None:
        self._models.pop(model, None)
        self._host.model_changed(model, "failed", error)


def gallery(options: ImageOptions) -> Gallery:
    """Build what reads images, and fetches them if that is allowed."""

    def fetcher() -> Fetcher:
        from cortex.neuron.images.fetch import Fetcher

        return Fetcher(options.max_mb << 20, options.timeout_s)

    return Gallery(options, fetcher if options.urls else None)


def missing_packages() -> list[str]:
    """Return what this interpreter lacks to run the engine."""
    return [name for name in NEEDED if find_spec(name) is None]


def make(options: TorchOptions, host: HarnessHost) -> TorchHarness:
    """Build the harness, or say which interpreter lacks what."""
    if missing := missing_packages():
        wanted = "'torch>=2.11' 'transformers>=5.17' jinja2 gguf accelerate llguidance pillow"
        install = f"{sys.executable} -m pip install {wanted}"
        raise ConfigError(
            f"harness 'torch': {sys.executable} has no {', '.join(missing)}",
            hint=f"install with: {install}; or start cortex with a Python that has torch",
        )
    return TorchHarness(options, host)


@hookimpl
def cortex_register_harnesses(register: Register[Harness]) -> None:
    register(
        "torch", make, options=TorchOptions, summary="the built-in engine, one worker a device"
    )


@hookimpl(trylast=True)
def cortex_choose_harness(spec: ModelSpec, device: Device) -> str | None:  # noqa: ARG001
    return "torch"
