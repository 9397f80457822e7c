"""A chunk of a streamed chat completion, as msgspec reads it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from cortex.chat.events import TokenLogprob, Usage


class WireFunction(msgspec.Struct):
    """``function`` of a delta of a call."""

    name: str | None = None
    arguments: Any = None


class WireCall(msgspec.Struct):
    """A delta of a call."""

    index: int | None = None
    id: str | None = None
    function: WireFunction | None = None


class WireDelta(msgspec.Struct):
    """``delta``."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[WireCall] | None = None


class WireTop(msgspec.Struct):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[Annotated[int, msgspec.Meta(ge=0, le=255)]] | None = None


class WireLogprob(WireTop):
    """A token of the answer."""

    top_logprobs: list[WireTop] = []


class WireLogprobs(msgspec.Struct):
    """``logprobs``."""

    content: list[WireLogprob] | None = None


class WireChoice(msgspec.Struct):
    """An element of ``choices``."""

    index: int = 0
    delta: WireDelta | None = None
    logprobs: WireLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    matched_stop: Any = None


class WireDetails(msgspec.Struct):
    """``prompt_tokens_details`` and ``completion_tokens_details``."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """``usage``."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: WireDetails | None = None
    completion_tokens_details: WireDetails | None = None


class WireChunk(msgspec.Struct):
    """The data of an event."""

    choices: list[WireChoice] | None = None
    usage: WireUsage | None = None
    error: Any = None
    object: Any = None  # "error" where the error is not in `error`
    message: Any = None
    code: Any = None


decode_chunk = msgspec.json.Decoder(WireChunk).decode


def read_usage(wire: WireUsage) -> Usage:
    """Read token counts."""
    prompt = wire.prompt_tokens_details or WireDetails()
    completion = wire.completion_tokens_details or WireDetails()
    return Usage(
        prompt_tokens=wire.prompt_tokens or 0,
        completion_tokens=wire.completion_tokens or 0,
        cached_tokens=prompt.cached_tokens or 0,
        reasoning_tokens=completion.reasoning_tokens or 0,
    )


def read_logprob(wire: WireLogprob) -> TokenLogprob:
    """Read the log probability of a token."""
    return TokenLogprob(
        token=wire.token,
        logprob=wire.logprob,
        data=bytes(wire.bytes or ()),
        top=tuple(
            TokenLogprob(token=top.token, logprob=top.logprob, data=bytes(top.bytes or ()))
            for top in wire.top_logprobs
        ),
    )
