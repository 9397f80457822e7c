"""
What a model says, as a stream of small frozen events.

A stream is `Started`, any number of `TextDelta`, then exactly one of `Finished` and `Failed`.
"""

from __future__ import annotations

from typing import Literal

import attrs

from cortex.errors import CortexError

FinishReason = Literal["stop", "length"]


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens and times of one answer; times in milliseconds."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


@attrs.frozen(kw_only=True)
class Started:
    """The request was admitted: from here on the HTTP status is 200."""

    prompt_tokens: int


@attrs.frozen
class TextDelta:
    """More text of the answer; never an empty string, never half a character."""

    text: str


@attrs.frozen(kw_only=True)
class Finished:
    """
    The last event of a stream that went well.

    Attributes:
        reason: Why it ended.
        stop_string: The stop string that matched, if one did.
    """

    reason: FinishReason
    usage: Usage
    stop_string: str | None = None


@attrs.frozen
class Failed:
    """The last event of a stream that broke; what came before it is not an answer."""

    error: CortexError


ChatEvent = Started | TextDelta | Finished | Failed
