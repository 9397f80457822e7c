"""A neuron without models, over real sockets: it does as told and counts what it is asked."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from time import monotonic
from typing import Literal, Self, cast

import attrs
import msgspec
from aiohttp import web

from cortex.api import ChatDialect, CountDialect, Dialect, Operation
from cortex.chat.events import (
    ChatEvent,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import ChatRequest, Text, Thinking
from cortex.config.schema import Address
from cortex.dialects.openai_chat import OpenAIChat
from cortex.errors import (
    CortexError,
    DeviceBusy,
    InsufficientVram,
    LoadFailed,
    ModelBusy,
    ModelNotFound,
)
from cortex.fleet.model import ModelCard
from cortex.fleet.node import (
    Device,
    DeviceInfo,
    Discovery,
    Health,
    Limit,
    ModelHealth,
    NodeModel,
)
from cortex.resumption import resumed, unpack
from cortex.web import Stream, add_dialects, application, listening, reply
from cortex.wire import encode

Ending = Literal["whole", "silent", "midway", "torn", "stall", "hang", "late"]


class FakeNeuron:
    """
    A neuron without models: ``async with FakeNeuron() as node: ... node.endpoint``.

    Attributes:
        answer: What every request is answered with, a word a token.
        thought: What it thinks before, the same way.
        calls: Tools it calls after that, each with no arguments.
        breaks_after: Tokens after which ``midway`` and ``torn`` break a stream, and ``stall`` stops
            it; None is all of them.
        token_s: Pause before each token, in seconds.
        poll_s: Pause before it says how it is.
        tells_usage: It tells the gateway what an answer took; False is a server that is not ours.
        cached_tokens: Tokens of each prompt it says it had already.
        max_in_flight: Requests it says a model takes at once; 0 is any number.
        ending: How an answer ends: whole, ``silent`` (the connection breaks before the first
            byte), ``midway`` (it breaks in the middle), ``torn`` (in the middle of an event),
            ``stall`` (it stops there, and no more comes of a stream), ``hang`` (nothing comes,
            ever),
            ``late`` (it comes whole once it may).
        refusal: Answered to inference instead, as an HTTP error.
        load_error: Answered to a load instead; `unload_error` to an unload, `load_error_late` to a
            load once it may; `restart_error` to the restart of a device.
        may_load: Loads wait for it.
        may_restart: Restarts of a device wait for it, and the device recovers meanwhile.
        may_answer: Answers whose ending is ``late`` wait for it, head and all.
        counts: ``poll``, ``load``, ``unload``, ``restart``, ``tokenizer``, ``chat``, ``count`` as
            asked; ``cancelled`` chats whose client left.
        bodies: The bodies of the chats.
        headers: Their headers, names in lower case.
    """

    def __init__(
        self,
        loaded: Sequence[str] = (),
        *,
        sizes: Mapping[str, int] | None = None,
        vram_mb: int = 24_000,
        devices: int = 1,
        name: str = "fake",
        dialects: Mapping[str, Dialect] | None = None,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.answer = "one two three"
        self.thought = ""
        self.calls: tuple[str, ...] = ()
        self.breaks_after: int | None = None
        self.token_s = 0.0
        self.poll_s = 0.0
        self.tells_usage = True
        self.cached_tokens = 0
        self.max_in_flight = 0
        self.ending: Ending = "whole"
        self.refusal: CortexError | None = None
        self.load_error: CortexError | None = None
        self.load_error_late: CortexError | None = None
        self.unload_error: CortexError | None = None
        self.restart_error: CortexError | None = None
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.may_restart = asyncio.Event()
        self.may_restart.set()
        self.may_answer = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.models: dict[str, NodeModel] = {}
        self.recovering: set[int] = set()
        self.name = name
        self._dialects = dialects or {"openai-chat": OpenAIChat()}
        self._sizes = dict(sizes or {})
        self._tls = tls
        self._vram_mb, self._devices = vram_mb, range(devices)
        self._address = Address("127.0.0.1", port)
        self._open = AsyncExitStack()
        self._began = monotonic()
        for model in loaded:
            self.models[model] = self._row(model, "loaded", (0,))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, again on the same port if it listened before."""
        self._began = monotonic()
        site = listening(self._application(), self._address, drain_s=0, tls=self._tls)
        self._address = await self._open.enter_async_context(site)

    async def stop(self) -> None:
        """Close every connection, and listen no more."""
        await self._open.aclose()

    @property
    def endpoint(self) -> str:
        return f"http{'s' * bool(self._tls)}://{self._address}"

    def becomes(self, model: str, status: str) -> None:
        """Change the status of a model, as a neuron does by itself."""
        self.models[model] = attrs.evolve(self.models[model], status=status)

    def cards(self, _: web.Request, /) -> list[ModelCard]:
        return [
            ModelCard(id=model.id, context=model.limit.context)
            for model in self.models.values()
            if model.routable
        ]

    def used_mb(self, device: int) -> int:
        """Return the memory in use on a device."""
        there = [model for model in self.models.values() if device in model.devices]
        return sum(model.vram_used_mb // len(model.devices) for model in there)

    def _row(self, model: str, status: str, devices: tuple[int, ...]) -> NodeModel:
        used_mb, limit = self._sizes.get(model, 0), Limit(context=4096, output=4096)
        return NodeModel(
            id=model, status=status, devices=devices, vram_used_mb=used_mb, limit=limit
        )

    def _application(self) -> web.Application:
        app = application()
        add_dialects(app, self._dialects, self)
        app.router.add_post("/models/tokenizer", self._tokenizer)
        app.router.add_get("/health", self._health)
        app.router.add_get("/discovery", self._discovery)
        app.router.add_get("/models", self._list)
        app.router.add_post("/models/load", self._load)
        app.router.add_post("/models/unload", self._unload)
        app.router.add_post("/devices/{index}/restart", self._restart)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        self.counts["poll"] += 1
        await asyncio.sleep(self.poll_s)
        total = self._vram_mb
        used = {index: self.used_mb(index) for index in self._devices}
        devices = tuple(
            Device(
                index=i,
                vram_total_mb=total,
                vram_used_mb=mb,
                vram_free_mb=total - mb,
                state="recovering" if i in self.recovering else "ok",
            )
            for i, mb in used.items()
        )
        models = tuple(
            ModelHealth(
                id=model.id,
                state=model.status,
                in_flight=self.in_flight[model.id],
                max_in_flight=self.max_in_flight,
            )
            for model in self.models.values()
        )
        uptime_s = monotonic() - self._began
        return reply(Health(status="ok", uptime_secs=uptime_s, devices=devices, models=models))

    async def _discovery(self, _: web.Request) -> web.Response:
        infos = tuple(DeviceInfo(index=i, vram_total_mb=self._vram_mb) for i in self._devices)
        return reply(
            Discovery(
                hostname=self.name,
                devices=infos,
                harnesses=("torch",),
                dialects=tuple(self._dialects),
            )
        )

    async def _list(self, _: web.Request) -> web.Response:
        return reply(tuple(self.models.values()))

    async def _load(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read())
        self.counts["load"] += 1
        if self.load_error is not None:
            raise self.load_error
        model, devices = body["model_id"], tuple(body.get("devices") or (0,))
        if model not in self.models:
            share_mb = self._sizes.get(model, 0) // len(devices)
            free_mb = min(self._vram_mb - self.used_mb(index) for index in devices)
            if share_mb > free_mb:
                figures = {"needed_mb": self._sizes[model], "free_mb": free_mb}
                raise InsufficientVram(f"{model} needs {share_mb} MiB", details=figures)
            self.models[model] = self._row(model, "loading", devices)
        await self.may_load.wait()
        if self.load_error_late is not None:
            del self.models[model]
            raise self.load_error_late
        if model not in self.models:
            raise LoadFailed(f"the load of {model!r} was cancelled")
        self.becomes(model, "loaded")
        used_mb = self.models[model].vram_used_mb
        return reply({"status": "loaded", "model_id": model, "vram_used_mb": used_mb})

    async def _tokenizer(self, request: web.Request) -> web.Response:
        self.counts["tokenizer"] += 1
        model = msgspec.json.decode(await request.read())["model_id"]
        return reply({"status": "ready", "model_id": model})

    async def _unload(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read())
        self.counts["unload"] += 1
        if self.unload_error is not None:
            raise self.unload_error
        model = body["model_id"]
        if model not in self.models:
            raise ModelNotFound(f"model {model!r} is not on this node")
        if self.in_flight[model] and not body.get("force"):
            raise ModelBusy(f"{model} has {self.in_flight[model]} requests in flight")
        del self.models[model]
        return reply({"status": "unloaded", "model_id": model})

    async def _restart(self, request: web.Request) -> web.Response:
        self.counts["restart"] += 1
        device = int(request.match_info["index"])
        if self.restart_error is not None:
            raise self.restart_error
        if there := [model.id for model in self.models.values() if device in model.devices]:
            raise DeviceBusy(f"device {device} has {', '.join(there)}", details={"models": there})
        self.recovering.add(device)
        try:
            await self.may_restart.wait()
        finally:
            self.recovering.discard(device)
        return reply({"status": "restarted", "device": device})

    async def serve(
        self,
        request: web.Request,
        name: str,  # noqa: ARG002
        dialect: Dialect,
        operation: Operation,
    ) -> web.StreamResponse:
        """Answer a chat as told; count a prompt's words as its tokens."""
        body = await request.read()
        if operation == "count":
            self.counts["count"] += 1
            count = cast("CountDialect", dialect)
            messages = count.parse_count(body, "fake").messages
            words = sum(len(message.text.split()) for message in messages)
            return web.Response(body=count.render_count(words), content_type="application/json")
        dialect = cast("ChatDialect", dialect)
        self.counts["chat"] += 1
        self.bodies.append(body)
        self.headers.append({key.lower(): value for key, value in request.headers.items()})
        if self.refusal is not None:
            raise self.refusal
        body, said = unpack(body, request.headers)
        chat = dialect.parse_request(body, request.headers.get("x-request-id", "fake"))
        chat = resumed(chat, said)
        model = request.headers.get("x-cortex-model", chat.model)
        if not any(card.id == model for card in self.cards(request)):
            raise ModelNotFound(f"model {model!r} is not loaded on this node")
        self.in_flight[model] += 1
        try:
            return await self._answer(request, chat, dialect)
        except asyncio.CancelledError:
            self.counts["cancelled"] += self.ending in ("whole", "hang")
            raise
        finally:
            self.in_flight[model] -= 1

    async def _answer(
        self, request: web.Request, chat: ChatRequest, dialect: ChatDialect
    ) -> web.StreamResponse:
        encoder = dialect.encoder(chat, 0)
        if self.ending in ("silent", "hang"):
            await self._break(request, self.ending == "silent")
        if self.ending == "late":
            await self.may_answer.wait()
        response = Stream(headers={"Content-Type": encoder.content_type})
        if not chat.stream:
            whole = b"".join([encoder.feed(event) async for event in self._events(chat)])
            response.content_length = len(whole)
            if self.tells_usage:
                response.headers["x-cortex-usage"] = encode(self._usage()).decode()
            await response.prepare(request)
            if self.ending in ("midway", "torn"):
                await response.write(whole[: len(whole) // 2])
                await self._break(request, True)
            await response.write(whole)
            return response
        await response.prepare(request)
        number = -1  # of a token
        async for event in self._events(chat):
            at_end = number == self.breaks_after or isinstance(event, Finished)
            data = encoder.feed(event)
            if at_end and self.ending == "torn":
                await response.write(data[: len(data) // 2])
            if at_end and self.ending in ("midway", "torn", "stall"):
                await self._break(request, self.ending != "stall")
            tells = self.tells_usage and "x-cortex-usage" in request.headers
            if tells and isinstance(event, Finished):
                await response.end(request, data, self._usage())
            else:
                await response.write(data)
            number += 1
        return response

    def _usage(self) -> Usage:
        thought = len(self.thought.split())
        return Usage(
            prompt_tokens=7,
            completion_tokens=thought + len(self.answer.split()),
            cached_tokens=self.cached_tokens,
            reasoning_tokens=thought,
        )

    async def _events(self, chat: ChatRequest) -> AsyncIterator[ChatEvent]:
        """Yield the answer; of one that was begun, what it has not yet."""
        yield Started(prompt_tokens=7)
        said = chat.messages[-1].parts if chat.resumes else ()
        for part, delta, words in (
            (Thinking, ThinkingDelta, self.thought),
            (Text, TextDelta, self.answer),
        ):
            before = "".join(one.text for one in said if isinstance(one, part)).split()
            for number, word in enumerate(words.split()[len(before) :], len(before)):
                await asyncio.sleep(self.token_s)
                yield delta(f" {word}" if number else word)
        for index, name in enumerate(self.calls):
            yield ToolCallStarted(index=index, id=f"call_{index}", name=name)
            yield ToolCallDelta(index=index, arguments="{}")
        yield Finished(reason="tool_calls" if self.calls else "stop", usage=self._usage())

    async def _break(self, request: web.Request, now: bool) -> None:
        if now and request.transport is not None:
            await asyncio.sleep(0)  # what was written goes out
            request.transport.close()
        await asyncio.Event().wait()  # until the client is gone, or this neuron stops
