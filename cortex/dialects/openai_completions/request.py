"""A completion request, read."""

from __future__ import annotations

from typing import Annotated

import attrs
import msgspec

from cortex.chat.request import ChatRequest
from cortex.dialects.openai_prompts import WirePrompts, parse_prompts
from cortex.dialects.openai_sampling import Choices, Positive, WireSampling
from cortex.errors import InvalidRequest, UnsupportedParameter
from cortex.wire import decode

DEFAULT_MAX_TOKENS = 16  # what the API promises; clients rely on it
MAX_ANSWERS = 2048


class WireRequest(WireSampling, kw_only=True):
    """The body of ``POST /v1/completions``."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    prompt: WirePrompts
    max_tokens: Positive | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Choices | None = None
    suffix: str | None = None


_decode = msgspec.json.Decoder(WireRequest).decode


@attrs.frozen(kw_only=True)
class Wanted:
    """
    What the encoder has to know besides, as `ChatRequest.private`.

    Attributes:
        n: Answers to show of each prompt; `ChatRequest.n` are made.
        echo: The answer begins with the prompt.
        logprobs: Likeliest tokens to show.
    """

    n: int
    echo: bool
    logprobs: int | None


def parse_request(body: bytes, request_id: str) -> ChatRequest:
    """Read a request; see `cortex.api.ChatDialect`."""
    wire = decode(_decode, body)
    prompts = parse_prompts(wire.prompt, "prompt")
    refuse_unsupported(wire)
    n = wire.n or 1
    made = max(n, wire.best_of or n)
    if made * len(prompts) > MAX_ANSWERS:
        raise InvalidRequest(f"prompt: over {MAX_ANSWERS} answers are asked for", param="prompt")
    ranked = 0 if made > n else None  # by log probability
    return ChatRequest(
        id=request_id,
        model=wire.model,
        prompts=prompts,
        n=made,
        sampling=wire.sampling(
            max_tokens=wire.max_tokens or DEFAULT_MAX_TOKENS,
            logprobs=ranked if wire.logprobs is None else wire.logprobs,
        ),
        stream=bool(wire.stream),
        include_usage=wire.asks_usage,
        private=Wanted(n=n, echo=bool(wire.echo), logprobs=wire.logprobs),
    )


def refuse_unsupported(wire: WireRequest) -> None:
    """Raise for what we cannot do, or nobody can."""
    if wire.suffix:
        raise UnsupportedParameter(
            "suffix is not supported: text is continued, not filled in", param="suffix"
        )
    if wire.echo and wire.logprobs is not None:
        raise UnsupportedParameter(
            "logprobs is not supported with echo: a prompt's tokens have none", param="logprobs"
        )
    if wire.best_of is None:
        return
    n = wire.n or 1
    if wire.best_of < n:
        raise InvalidRequest(f"best_of is {wire.best_of}, less than n, {n}", param="best_of")
    if wire.stream and wire.best_of > n:
        raise InvalidRequest("best_of cannot be streamed", param="best_of")
