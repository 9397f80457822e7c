"""
The harness that runs models in our own torch engine, one worker process per device.

This half lives in the neuron's process: text in, text out, and never torch.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from importlib.util import find_spec
from typing import Literal

import attrs
import msgspec

from cortex import hookimpl
from cortex.api import Count, Harness, HarnessHost, Register, Report
from cortex.chat.events import ChatEvent, Failed, Finished, Started, Usage
from cortex.chat.request import ChatRequest, EmbeddingRequest, Embeddings
from cortex.errors import (
    ConfigError,
    ContextLengthExceeded,
    DeviceUnavailable,
    InvalidRequest,
    ModelNotFound,
    OperationUnsupported,
    UpstreamDied,
)
from cortex.fleet.model import Checkpoint, ModelSpec, ModelStats, Progress, RunningModel
from cortex.fleet.node import Device, DeviceState
from cortex.neuron.embedding import embed_job, vectors_of
from cortex.neuron.engine import jobs
from cortex.neuron.faults import fault_of
from cortex.neuron.running import Running
from cortex.neuron.text.answer import Answer
from cortex.neuron.text.begun import Begun
from cortex.neuron.text.side import Prompt, Text
from cortex.neuron.workers import DeviceWorker

NEEDED = ("torch", "transformers", "tokenizers", "jinja2", "gguf", "accelerate", "llguidance")
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class TorchOptions:
    """
    ``[harness.torch]``.

    Attributes:
        dtype: ``auto`` is the checkpoint's own on a GPU and float32 on a CPU.
        device: ``auto`` takes every GPU, or the CPU if there is none.
        kv_cache_fraction: Of the memory that is free once a model's weights are there, the share
            its cache may take, where models.toml does not say how much the model may take.
        max_batch_tokens: Tokens of one step: prompts are computed in pieces of at most so many.
        max_sequences: Requests of one model that run at once; more wait.
        threads: CPU threads of a worker; 0 lets torch decide.
        watchdog_s: A worker whose step takes longer is replaced.
        debug_faults: Let requests break the device, for drills: `cortex.neuron.faults`.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    kv_cache_fraction: float = 0.9
    max_batch_tokens: int = 2048
    max_sequences: int = 256
    threads: int = 0
    watchdog_s: float = 120.0
    debug_faults: bool = False


class TorchHarness:
    """See the module; a `cortex.neuron.workers.Watcher` of its workers."""

    needs_weights = True

    def __init__(self, options: TorchOptions, host: HarnessHost) -> None:
        self._options = options
        self._host = host
        self._models: dict[str, Running] = {}
        self._workers: dict[int, DeviceWorker] = {}
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
        assert checkpoint is not None  # noqa: S101 - needs_weights
        worker = self._workers.get(device) or next(iter(self._workers.values()))
        report(Progress(stage="starting"))

        def stage(name: str, done: int, total: int) -> None:
            report(Progress(stage=name, done=done, total=total))

        job = jobs.Load(
            model=spec.id,
            path=str(checkpoint.path),
            dtype=self._options.dtype,
            quant=spec.load_quant,
            context=spec.context,
            memory_bytes=spec.vram_mb << 20 if spec.vram_mb else None,
            cache_fraction=self._options.kv_cache_fraction,
            max_sequences=self._options.max_sequences,
            max_batch_tokens=self._options.max_batch_tokens,
        )
        loaded = await worker.load(job, stage)
        log.info("%s on device %d runs %s", spec.id, worker.index, loaded.body)
        defaults = (checkpoint.sampling, loaded.text.sampling, spec.defaults)  # the last wins
        self._models[spec.id] = Running(
            worker=worker,
            text=await asyncio.to_thread(Text, loaded.text),
            context=loaded.context,
            body=loaded.body,
            defaults=dict(itertools.chain(*(d.items() for d in defaults))),
            slots=asyncio.Semaphore(self._options.max_sequences),
            width=loaded.dimensions,
        )
        text = self._models[spec.id].text.capabilities
        return RunningModel(
            used_bytes=loaded.used_bytes,
            context=loaded.context,
            capabilities=text if loaded.dimensions is None else ("embedding",),
        )

    async def unload(self, model_id: str) -> None:
        if (running := self._models.pop(model_id, None)) is not None:
            await running.worker.unload(model_id)

    async def count(self, request: ChatRequest) -> int:
        return await count(self._speaking(request.model).text, request)

    async def counter(self, spec: ModelSpec, checkpoint: Checkpoint | None) -> Count:  # noqa: ARG002
        assert checkpoint is not None  # noqa: S101 - needs_weights
        files = await self._any_worker().read_text(str(checkpoint.path))
        return functools.partial(count, await asyncio.to_thread(Text, files))

    async def check(self, spec: ModelSpec, checkpoint: Checkpoint) -> None:  # noqa: ARG002
        with suppress(DeviceUnavailable):  # there is time until the weights are here
            await self._any_worker().check(str(checkpoint.path))

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
        async with running.place(), aclosing(running.worker.ask(job)) as events:
            async for event in events:
                if isinstance(event, jobs.Embedded):
                    vectors = await asyncio.to_thread(vectors_of, event)
                    return Embeddings(vectors=vectors, prompt_tokens=sum(map(len, job.inputs)))
                if isinstance(event, jobs.Lost):
                    raise UpstreamDied(event.message)
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

    async def generate(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        running = self._speaking(request.model)
        prompt, grammar = await running.read(request)
        before = prompt.begun if request.resumes else None
        if before is not None and (most := request.sampling.max_tokens):
            left = attrs.evolve(request.sampling, max_tokens=max(most - before.tokens, 0))
            request = attrs.evolve(request, sampling=left)
        job = generate_job(request, prompt, running, f"{next(self._numbers)}", grammar)
        if self._options.debug_faults:
            job = msgspec.structs.replace(job, fault=fault_of(request))
        async with running.place():
            yield Started(prompt_tokens=len(prompt.ids), prompt_text=prompt.said)
            answer = running.text.answer(request, prompt)
            if (
                before is not None and request.sampling.max_tokens == 0
            ):  # all was said but that it was cut off
                usage = Usage(prompt_tokens=len(prompt.ids))
                yield whole(Finished(reason="length", usage=usage), before)
                return
            async with aclosing(self._answer(running, job, answer)) as events:
                async for event in events:
                    yield whole(event, before) if isinstance(event, Finished) else event

    async def _answer(
        self, running: Running, job: jobs.Generate, answer: Answer
    ) -> AsyncGenerator[ChatEvent, None]:
        async with aclosing(running.worker.ask(job)) as stream:
            async for event in stream:
                match event:
                    case jobs.Token():
                        for said in answer.feed(event):
                            yield said
                        if answer.over:
                            break
                    case jobs.Lost(message=message):
                        yield Failed(UpstreamDied(message))
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


async def count(text: Text, request: ChatRequest) -> int:
    """Return the tokens of a request's prompt."""
    return len((await asyncio.to_thread(text.prompt, request)).ids)


def generate_job(
    request: ChatRequest, prompt: Prompt, running: Running, job_id: str, grammar: str | None
) -> jobs.Generate:
    """
    Return the engine's job for a request.

    What the request leaves open is filled from models.toml, then from the checkpoint.

    Raises:
        ContextLengthExceeded: The prompt leaves no room for an answer.
        InvalidRequest: A token id is not one of the model's.
    """
    tokens = len(prompt.ids)
    room = running.context - tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"maximum context length is {running.context} tokens, the prompt has {tokens}",
            param="prompt" if request.prompts else "messages",
            details={"prompt_tokens": tokens, "context_tokens": running.context},
        )
    sampling, defaults = request.sampling, running.defaults
    for token in sampling.logit_bias:
        if not 0 <= token < running.text.vocabulary.size:
            raise InvalidRequest(
                f"logit_bias: the model has no token {token}, its ids end at"
                f" {running.text.vocabulary.size - 1}",
                param="logit_bias",
            )

    def chosen(asked: float | None, name: str, otherwise: float) -> float:
        return asked if asked is not None else defaults.get(name, otherwise)

    return jobs.Generate(
        id=job_id,
        model=request.model,
        prompt=prompt.ids,
        max_tokens=min(sampling.max_tokens or room, room),
        temperature=chosen(sampling.temperature, "temperature", 1.0),
        top_p=chosen(sampling.top_p, "top_p", 1.0),
        top_k=int(chosen(sampling.top_k, "top_k", 0)),
        min_p=chosen(sampling.min_p, "min_p", 0.0),
        repetition_penalty=chosen(sampling.repetition_penalty, "repetition_penalty", 1.0),
        ignore_eos=sampling.ignore_eos,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logit_bias=dict(sampling.logit_bias),
        seed=sampling.seed,
        logprobs=sampling.logprobs,
        principal=request.principal,
        priority=request.priority,
        weight=request.weight,
        grammar=grammar,
    )


def finished(job: jobs.Generate, answer: Answer, done: jobs.Done | None = None) -> Finished:
    """Return the last event of an answer; without *done* it ended before the engine did."""
    cut = done is not None and done.reason == "length"
    times = (done.queue_ms, done.prefill_ms, done.decode_ms) if done else (0.0, 0.0, 0.0)
    return Finished(
        reason=answer.reason(cut=cut),
        usage=Usage(
            prompt_tokens=len(job.prompt),
            completion_tokens=done.completion_tokens if done else answer.tokens,
            cached_tokens=done.cached_tokens if done else 0,
            reasoning_tokens=answer.reasoning_tokens,
            queue_ms=times[0],
            prefill_ms=times[1],
            decode_ms=times[2],
        ),
        stop_string=answer.stop_string,
    )


def whole(event: Finished, before: Begun | None) -> Finished:
    """Return the last event of an answer, with the tokens of what was said of it *before*."""
    if before is None:
        return event
    usage = attrs.evolve(
        event.usage,
        prompt_tokens=event.usage.prompt_tokens - before.tokens,
        completion_tokens=event.usage.completion_tokens + before.tokens,
        reasoning_tokens=event.usage.reasoning_tokens + before.thought_tokens,
    )
    return attrs.evolve(event, usage=usage)


def missing_packages() -> list[str]:
    """Return what this interpreter lacks to run the engine."""
    return [name for name in NEEDED if find_spec(name) is None]


def make(options: TorchOptions, host: HarnessHost) -> TorchHarness:
    """Build the harness, or say which interpreter lacks what."""
    if missing := missing_packages():
        wanted = "'torch>=2.11' 'transformers>=5.17' jinja2 gguf accelerate llguidance"
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
