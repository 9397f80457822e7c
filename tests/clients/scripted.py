"""
A harness whose model says what a script tells it to; an ordinary plugin.

A script is a table from a word to turns.  The last user message with one of the words in it picks
the row, by the longest there is (the empty word is in all); the assistant's turns since then pick
the turn.  A turn is what follows `Started`: deltas and `Finished`, or a `Failed` in the middle; or
an error, which is raised before `Started`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from math import hypot
from pkgutil import resolve_name

import attrs

from cortex import hookimpl
from cortex.api import Harness, HarnessHost, Register, Report
from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    FinishReason,
    Started,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import ChatRequest, EmbeddingRequest, Embeddings, ToolCall, ToolResult
from cortex.errors import ContextLengthExceeded, CortexError, InvalidRequest
from cortex.fleet.model import Checkpoint, ModelSpec, ModelStats, RunningModel

CONTEXT = 200_000
CAPABILITIES = ("text", "vision", "embedding", "tools", "reasoning")
LOGPROB = -0.25


class Pause:
    """Nothing more comes until the client leaves."""


@attrs.frozen
class Once:
    """An error the first time a conversation gets here; then the turn."""

    error: CortexError
    then: Sequence[ChatEvent]


Turn = Sequence[ChatEvent | Pause] | Exception | Once
Script = Mapping[str, Sequence[Turn]]


def say(
    *texts: str,
    think: Sequence[str] = (),
    calls: Sequence[tuple[str, str, Sequence[str]]] = (),
    reason: FinishReason | None = None,
    stop_string: str | None = None,
    cached: int = 0,
) -> tuple[ChatEvent, ...]:
    """
    Return a turn that ends well.

    Args:
        texts: The answer, delta by delta.
        think: What is thought before it.
        calls: What follows it: id, name and the arguments, delta by delta.
        reason: Why it ends, if not for what it holds.
        stop_string: The one that matched.
        cached: Prompt tokens from the cache.
    """
    events: list[ChatEvent] = [ThinkingDelta(text) for text in think]
    events += [TextDelta(text) for text in texts]
    for index, (call_id, name, arguments) in enumerate(calls):
        events.append(ToolCallStarted(index=index, id=call_id, name=name))
        events += [ToolCallDelta(index=index, arguments=piece) for piece in arguments]
    usage = Usage(completion_tokens=len(events), reasoning_tokens=len(think), cached_tokens=cached)
    reason = reason or ("tool_calls" if calls else "stop")
    return (*events, Finished(reason=reason, usage=usage, stop_string=stop_string))


def break_off(*texts: str, error: CortexError) -> tuple[ChatEvent, ...]:
    """Return a turn that fails after some text."""
    return (*map(TextDelta, texts), Failed(error))


def tokens_of(request: ChatRequest) -> int:
    """Count the words of a prompt, whatever they are in."""
    words = [word for prompt in request.prompts for word in words_of(prompt)]
    for message in request.messages:
        for part in message.parts:
            match part:
                case ToolCall():
                    words += [part.name, *part.arguments.split()]
                case ToolResult():
                    words += part.text.split()
                case _:
                    words += getattr(part, "text", "").split()
    return len(words) + sum(1 + len(tool.description.split()) for tool in request.tools)


def words_of(prompt: str | tuple[int, ...]) -> list[str]:
    return prompt.split() if isinstance(prompt, str) else [str(token) for token in prompt]


@attrs.frozen(kw_only=True)
class ScriptedOptions:
    """``[harness.scripted]``: where the script is, as ``module:NAME``."""

    script: str


class Scripted:
    """
    See the module.

    Attributes:
        script: What it says.
        requests: What arrived, one for each answer, oldest first.
        embedded: The same of embeddings.
        left: Ids of requests whose client left before the end.
    """

    needs_weights = False

    def __init__(self, options: ScriptedOptions, host: HarnessHost) -> None:
        self.script: Script = resolve_name(options.script)
        self._contexts: dict[str, int] = {}
        self._in_flight: Counter[str] = Counter()
        self._seen: set[str] = set()
        self.requests: list[ChatRequest] = []
        self.embedded: list[EmbeddingRequest] = []
        self.left: list[str] = []

    def forget(self) -> None:
        """Forget what was asked."""
        for memory in (self.requests, self.embedded, self.left, self._seen):
            memory.clear()

    async def load(
        self, spec: ModelSpec, checkpoint: Checkpoint | None, device: int, report: Report
    ) -> RunningModel:
        context = self._contexts[spec.id] = spec.context or CONTEXT
        return RunningModel(used_bytes=0, context=context, capabilities=CAPABILITIES)

    async def unload(self, model_id: str) -> None:
        del self._contexts[model_id]

    async def generate(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        self.requests.append(request)
        prompt = self._fitting(request)
        turn = self._turn(request)
        self._in_flight[request.model] += 1
        try:
            yield Started(prompt_tokens=prompt)
            for event in turn:
                match event:
                    case Pause():
                        await asyncio.Event().wait()
                    case Finished():
                        usage = attrs.evolve(event.usage, prompt_tokens=prompt)
                        yield attrs.evolve(event, usage=usage)
                    case TextDelta() if (wanted := request.sampling.logprobs) is not None:
                        yield TextDelta(event.text, (logprob(event.text, wanted),))
                    case _:
                        yield event
        except (GeneratorExit, asyncio.CancelledError):
            if not isinstance(event, Finished | Failed):
                self.left.append(request.id)
            raise
        finally:
            self._in_flight[request.model] -= 1

    def _fitting(self, request: ChatRequest) -> int:
        """Return the tokens of the prompt, if there is room for it."""
        prompt, context = tokens_of(request), self._contexts[request.model]
        if prompt >= context:
            raise ContextLengthExceeded(
                f"maximum context length is {context} tokens, the prompt has {prompt}",
                param="messages",
                details={"prompt_tokens": prompt, "context_tokens": context},
            )
        return prompt

    def _turn(self, request: ChatRequest) -> Sequence[ChatEvent | Pause]:
        """Return what the script has for a conversation."""
        said, number = str(request.prompts[0]) if request.prompts else "", 0
        for message in reversed(request.messages):
            if message.role == "user" and self._word(message.text) is not None:
                said = message.text
                break
            number += message.role == "assistant"
        turns = self.script.get(self._word(said), ())
        if number >= len(turns):
            raise InvalidRequest(f"the script has no turn {number} for {said!r}")
        turn = turns[number]
        if isinstance(turn, Once):
            if said not in self._seen:
                self._seen.add(said)
                raise turn.error
            turn = turn.then
        if isinstance(turn, Exception):
            raise turn.with_traceback(None)
        return turn

    def _word(self, text: str) -> str | None:
        return max((word for word in self.script if word in text), key=len, default=None)

    async def count(self, request: ChatRequest) -> int:
        return tokens_of(request)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        self.embedded.append(request)
        texts = [words_of(text) for text in request.inputs]
        vectors = tuple(unit((len(words), 2.0, 3.0, 4.0)[: request.dimensions]) for words in texts)
        return Embeddings(vectors=vectors, prompt_tokens=sum(map(len, texts)))

    def stats(self, model_id: str) -> ModelStats:
        return ModelStats(in_flight=self._in_flight[model_id], max_in_flight=1 << 20)

    async def aclose(self) -> None:
        self._contexts.clear()


def unit(vector: Sequence[float]) -> tuple[float, ...]:
    return tuple(component / hypot(*vector) for component in vector)


def logprob(text: str, wanted: int) -> TokenLogprob:
    """Return how likely a delta was: the same for all."""
    likely = TokenLogprob(token=text, logprob=LOGPROB, data=text.encode())
    return attrs.evolve(likely, top=(likely,) * min(wanted, 1))


@hookimpl
def cortex_register_harnesses(register: Register[Harness]) -> None:
    register("scripted", Scripted, options=ScriptedOptions, summary="says what a script says")
