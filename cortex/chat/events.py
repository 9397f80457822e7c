"""
What a model says, as a stream of small frozen events.

A stream is `Started`, any number of deltas, then exactly one of `Finished` and `Failed`.
Thinking comes first, and may come again; a `ToolCallDelta` belongs to the last `ToolCallStarted`,
with nothing else in between, and text may come before, between and after calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from cortex.errors import CortexError

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@attrs.frozen(kw_only=True)
class Usage:
    """
    Tokens and times of one answer; times in milliseconds.

    Attributes:
        prompt_tokens: With those of `cached_tokens`.
        completion_tokens: With those of `reasoning_tokens`.
        cached_tokens: Prompt tokens that were not computed again.
        reasoning_tokens: Tokens of thought.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


def total_usage(usages: Mapping[int, Usage], n: int) -> Usage:
    """
    Return the usage of a request's answers; times are those of the first there is.

    Args:
        usages: Of each choice.
        n: Answers to each prompt; a prompt is counted once, however many answers it got.
    """
    prompts = [usage for choice, usage in usages.items() if choice % n == 0]
    return attrs.evolve(
        usages[min(usages)],
        prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
        cached_tokens=sum(usage.cached_tokens for usage in prompts),
        completion_tokens=sum(usage.completion_tokens for usage in usages.values()),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages.values()),
    )


@attrs.frozen(kw_only=True)
class TokenLogprob:
    """
    How likely a token was.

    Attributes:
        token: Its text; a replacement character where it is part of one.
        data: Its bytes.
        top: The likeliest at this place, likeliest first, without tops of their own.
    """

    token: str
    logprob: float
    data: bytes = b""
    top: tuple[TokenLogprob, ...] = ()


@attrs.frozen(kw_only=True)
class Started:
    """
    The request was admitted: from here on the HTTP status is 200.

    Attributes:
        prompt_text: What a prompt of token ids says.
    """

    prompt_tokens: int
    prompt_text: str | None = None


@attrs.frozen
class TextDelta:
    """
    More text of the answer; never half a character.

    Attributes:
        logprobs: The tokens since the last delta, if they were asked for.  Only with some may the
            text be empty.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@attrs.frozen
class ThinkingDelta:
    """More of what the model thinks before it answers; never empty."""

    text: str


@attrs.frozen(kw_only=True)
class ToolCallStarted:
    """
    The model calls a tool.

    Attributes:
        index: 0, 1, 2 ... within the answer.
        id: Unique within the conversation.
    """

    index: int
    id: str
    name: str


@attrs.frozen(kw_only=True)
class ToolCallDelta:
    """More of a call's arguments, a JSON object as text; never empty."""

    index: int
    arguments: str


@attrs.frozen(kw_only=True)
class Finished:
    """
    The last event of a stream that went well.

    Attributes:
        reason: Why it ended; ``tool_calls`` if it holds any call and was not cut off.
        stop_string: The stop string that matched, if one did.
    """

    reason: FinishReason
    usage: Usage
    stop_string: str | None = None


@attrs.frozen
class Failed:
    """The last event of a stream that broke; what came before it is not an answer."""

    error: CortexError


ChatEvent = (
    Started | TextDelta | ThinkingDelta | ToolCallStarted | ToolCallDelta | Finished | Failed
)
