"""A chat request as every part of cortex sees it, whatever dialect it came in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

Role = Literal["system", "user", "assistant", "tool"]


@attrs.frozen
class Text:
    """A piece of text."""

    text: str


Part = Text


@attrs.frozen(kw_only=True)
class Message:
    """One turn; a turn without content has no parts."""

    role: Role
    parts: tuple[Part, ...] = ()

    @property
    def text(self) -> str:
        """All text of the turn; parts are joined as they are, so every spelling renders alike."""
        return "".join(part.text for part in self.parts)


@attrs.frozen(kw_only=True)
class Sampling:
    """
    How to pick tokens.  None means "no opinion": the model's defaults decide.

    Attributes:
        temperature: 0 is greedy; 0..2.
        top_p: Keep the smallest set of tokens with this mass; 0 < top_p <= 1.
        top_k: Keep this many tokens; 0 keeps all.
        seed: Same seed, same tokens.
        max_tokens: Tokens to generate at most; clamped to the context.
        stop: Strings that end the answer; they are not part of it.
        frequency_penalty: Taken off a token's logit for each time the answer has it; -2..2.
        presence_penalty: Taken off the logit of a token the answer has; -2..2.
        logit_bias: Added to logits, by token id; -100..100.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ChatRequest:
    """
    One request.

    Attributes:
        id: Ours, for headers, logs and cancellation.
        model: The name the client used; an alias is resolved before the neuron sees it.
        include_usage: A streaming client asked for the token counts.
    """

    id: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = attrs.field(factory=Sampling)
    stream: bool = False
    include_usage: bool = False


@attrs.frozen(kw_only=True)
class RequestHead:
    """
    What the gateway reads of a request before it routes it.

    Attributes:
        model: The catalogue's id, aliases resolved.
    """

    id: str
    model: str
    stream: bool = False
