"""One request to a server: what it is asked, and its answer as events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from time import monotonic
from typing import Any

import attrs
import msgspec

from cortex.api import ChatClient
from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from cortex.chat.request import ChatRequest, Sampling, Text
from cortex.dialects.openai_chat.client import OpenAIChatClient
from cortex.errors import CortexError, OperationUnsupported, UpstreamDied
from cortex_harness_vllm.asking import Asking
from cortex_harness_vllm.completions import CompletionsClient
from cortex_harness_vllm.engine import Engine

FILLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def filled(request: ChatRequest, defaults: Mapping[str, float]) -> ChatRequest:
    """Return a request in which what the client leaves open is as models.toml has it."""
    open_ones: dict[str, Any] = {
        name: int(defaults[name]) if name == "top_k" else defaults[name]
        for name in FILLED
        if name in defaults and getattr(request.sampling, name) is None
    }
    return attrs.evolve(request, sampling=attrs.evolve(request.sampling, **open_ones))


class Answer:
    """
    An answer on its way.

    Attributes:
        tokens: Generated so far; of a stream under way, its pieces.
        usage: What it took, with times as seen from here; None until it has ended well.
    """

    def __init__(self, engine: Engine, asking: Asking, request: ChatRequest) -> None:
        self._engine = engine
        self._asking = asking
        self._request = request
        self._client: ChatClient = CompletionsClient() if request.prompts else OpenAIChatClient()
        self._begun = 0  # tokens of the answer that another neuron had said
        self._text: list[str] = []
        self._prompt_tokens = 0
        self._asked = self._first = monotonic()
        self.tokens = 0
        self.usage: Usage | None = None

    async def count(self) -> int:
        """Return the tokens of its prompt."""
        self._engine.refuse(self._request)
        body = msgspec.json.decode(self._client.render_request(self._request), type=dict[str, Any])
        return await self._engine.count(self._asking, self._request, body)

    async def events(self) -> AsyncGenerator[ChatEvent, None]:
        """Yield them; raises what goes wrong before `Started`."""
        if self._request.resumes:
            await self._go_on()
        self._engine.refuse(self._request)
        said = await self._said(self._request)
        is_cut = self._request.sampling.max_tokens == 0  # all was said but that
        if self._engine.counts_first or is_cut:
            self._prompt_tokens = await self.count()
        if is_cut:
            yield Started(prompt_tokens=self._prompt_tokens, prompt_text=said)
            yield self._finished(Finished(reason="length", usage=Usage()))
            return
        self._asked = self._first = monotonic()
        is_started = False
        async with aclosing(self._stream()) as events:
            async for event in events:
                match event:
                    case Started():
                        is_started = True
                        self._prompt_tokens = event.prompt_tokens or self._prompt_tokens
                        yield Started(prompt_tokens=self._prompt_tokens, prompt_text=said)
                    case Failed(error) if not is_started:
                        raise error
                    case Finished():
                        yield self._finished(await self._counted(event))
                    case _:
                        yield event

    async def _stream(self) -> AsyncGenerator[ChatEvent, None]:
        decoder = self._client.decoder(self._request)
        body = self._client.render_request(self._request)
        try:
            async with (
                self._asking.stream(self._client, body) as pieces,
                aclosing(pieces),
            ):
                async for piece in pieces:
                    for _, event in decoder.feed(piece):
                        self._take(event)
                        yield event
                        if isinstance(event, Finished | Failed):
                            return  # whatever becomes of the connection
        except UpstreamDied as error:
            yield Failed(error)
            return
        for _, event in decoder.end():
            yield event

    def _take(self, event: ChatEvent) -> None:
        if isinstance(event, TextDelta | ThinkingDelta | ToolCallDelta):
            self._first = self._first if self.tokens else monotonic()
            self.tokens += 1
            self._text.append(event.arguments if isinstance(event, ToolCallDelta) else event.text)

    async def _counted(self, event: Finished) -> Finished:
        """Return the end with the tokens of the answer, where the server does not say them."""
        if event.usage.completion_tokens or not self._text:
            return event
        try:
            tokens = await self._engine.tokens(self._asking, "".join(self._text))
        except CortexError:
            tokens = self.tokens
        return attrs.evolve(event, usage=attrs.evolve(event.usage, completion_tokens=tokens))

    def _finished(self, event: Finished) -> Finished:
        """Return the end with our times, and the tokens of an answer that was begun in it."""
        usage = event.usage
        prompt = usage.prompt_tokens or self._prompt_tokens
        self.tokens = usage.completion_tokens
        self.usage = attrs.evolve(
            usage,
            prompt_tokens=max(prompt - self._begun, 0),
            completion_tokens=usage.completion_tokens + self._begun,
            # One that does not say its prompt's tokens had it computed when they were counted.
            prefill_ms=1e3 * (self._first - self._asked) if usage.prompt_tokens else 0.0,
            decode_ms=1e3 * (monotonic() - self._first) if self._text else 0.0,
        )
        return attrs.evolve(event, usage=self.usage)

    async def _go_on(self) -> None:
        """Take in how much of the answer was said: its tokens count against the limit."""
        last = self._request.messages[-1]
        if not all(isinstance(part, Text) for part in last.parts):
            raise OperationUnsupported(
                f"harness {self._engine.name!r} goes on with text only, not with thoughts or calls"
            )
        self._begun = await self._engine.tokens(self._asking, last.text)
        if (most := self._request.sampling.max_tokens) is not None:
            left: Sampling = attrs.evolve(
                self._request.sampling, max_tokens=max(most - self._begun, 0)
            )
            self._request = attrs.evolve(self._request, sampling=left)

    async def _said(self, request: ChatRequest) -> str | None:
        """Return what a bare prompt says."""
        if not request.prompts:
            return None
        prompt = request.prompts[0]
        return prompt if isinstance(prompt, str) else await self._engine.text(self._asking, prompt)
