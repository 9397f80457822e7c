"""
A harness without a model: it answers with the last message, word by word.

An answer that was begun goes on where it was.

Deterministic, for tests and demonstrations; ``delay_s`` paces it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator

import attrs

from cortex import hookimpl
from cortex.api import Count, Harness, HarnessHost, Register, Report
from cortex.chat.events import ChatEvent, Finished, Started, TextDelta, Usage
from cortex.chat.request import ChatRequest, EmbeddingRequest, Embeddings, Prompt
from cortex.errors import OperationUnsupported
from cortex.fleet.model import Checkpoint, ModelSpec, ModelStats, Progress, RunningModel

CONTEXT = 4096


@attrs.frozen(kw_only=True)
class EchoOptions:
    """
    ``[harness.echo]``.

    Attributes:
        delay_s: Pause before each word, in seconds.
        load_s: Time a load takes, in seconds.
        used_mb: Memory a model without ``vram_mb`` pretends to take, in MiB.
    """

    delay_s: float = 0.0
    load_s: float = 0.0
    used_mb: int = 0


class Echo:
    """See the module; a token is a word."""

    needs_weights = False

    def __init__(self, options: EchoOptions, host: HarnessHost) -> None:  # noqa: ARG002
        self._options = options
        self._in_flight: Counter[str] = Counter()
        self._tokens_total: Counter[str] = Counter()

    async def load(
        self,
        spec: ModelSpec,
        checkpoint: Checkpoint | None,  # noqa: ARG002
        device: int,  # noqa: ARG002
        report: Report,
    ) -> RunningModel:
        steps = 10
        for step in range(steps):
            report(Progress(stage="loading", done=step, total=steps))
            await asyncio.sleep(self._options.load_s / steps)
        used_mb = spec.vram_mb or self._options.used_mb
        return RunningModel(used_bytes=used_mb << 20, context=spec.context or CONTEXT)

    async def unload(self, model_id: str) -> None:
        del self._in_flight[model_id]

    async def generate(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        texts = [message.text for message in request.messages] or list(map(spelt, request.prompts))
        prompt = [word for text in texts for word in text.split()]
        goes_on = len(request.messages) > 1 and request.messages[-1].role == "assistant"
        begun = texts.pop() if goes_on else ""
        rest = " ".join(texts[-1].split()).removeprefix(begun)
        words, space = rest.split(), " " if begun and rest.startswith(" ") else ""
        limit = request.sampling.max_tokens or len(words)
        before = len(begun.split()) if request.resumes else 0
        limit = max(limit - before, 0) if request.sampling.max_tokens else limit
        self._in_flight[request.model] += 1
        try:
            said = texts[-1] if request.prompts else None
            yield Started(prompt_tokens=len(prompt), prompt_text=said)
            for number, word in enumerate(words[:limit]):
                await asyncio.sleep(self._options.delay_s)
                self._tokens_total[request.model] += 1
                yield TextDelta(f" {word}" if number else f"{space}{word}")
            said_now = min(len(words), limit)
            usage = Usage(prompt_tokens=len(prompt) - before, completion_tokens=before + said_now)
            yield Finished(reason="length" if limit < len(words) else "stop", usage=usage)
        finally:
            self._in_flight[request.model] -= 1

    async def count(self, request: ChatRequest) -> int:
        return sum(len(message.text.split()) for message in request.messages)

    async def counter(
        self,
        spec: ModelSpec,  # noqa: ARG002
        checkpoint: Checkpoint | None,  # noqa: ARG002
    ) -> Count:
        return self.count

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        raise OperationUnsupported(f"model {request.model!r} only repeats; it makes no embeddings")

    def stats(self, model_id: str) -> ModelStats:
        return ModelStats(
            in_flight=self._in_flight[model_id],
            max_in_flight=1 << 20,
            tokens_total=self._tokens_total[model_id],
        )

    async def aclose(self) -> None:
        self._in_flight.clear()


def spelt(prompt: Prompt) -> str:
    """Return a prompt as words; a token id is one."""
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


@hookimpl
def cortex_register_harnesses(register: Register[Harness]) -> None:
    register("echo", Echo, options=EchoOptions, summary="repeats the last message; no model")
