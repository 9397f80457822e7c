"""What OpenAI's dialects have in common: errors, usage, models, and how much to think."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cortex.chat.events import Usage
from cortex.chat.request import Reasoning
from cortex.errors import CortexError
from cortex.fleet.model import ModelCard
from cortex.wire import encode

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class OpenAIErrors:
    """Errors as OpenAI's dialects render them."""

    def render_error(self, error: CortexError, request_id: str = "") -> tuple[int, bytes]:  # noqa: ARG002
        return error.status, encode({"error": error_object(error)})

    def render_stream_error(self, error: CortexError, request_id: str = "") -> bytes:  # noqa: ARG002
        return stream_error(error)


class OpenAIModels:
    """Lists of models as OpenAI's dialects render them."""

    def render_models(
        self,
        cards: Sequence[ModelCard],
        created: int,
        query: Mapping[str, str],  # noqa: ARG002
    ) -> bytes:
        return encode({"object": "list", "data": [model_row(card, created) for card in cards]})

    def render_model(self, card: ModelCard, created: int) -> bytes:
        return encode(model_row(card, created))


def usage_object(usage: Usage) -> dict[str, Any]:
    """Render token counts, with our own timings beside them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "cortex": {
            "queue_ms": round(usage.queue_ms, 1),
            "prefill_ms": round(usage.prefill_ms, 1),
            "decode_ms": round(usage.decode_ms, 1),
        },
    }


def error_object(error: CortexError) -> dict[str, Any]:
    """Render an error's cause; figures ride beside the standard members."""
    said = {
        "message": str(error),
        "type": error.type,
        "code": error.code,
        "param": error.param,
    }
    return {**said, **error.details, **said}


def stream_error(error: CortexError) -> bytes:
    """Render the event that ends a broken stream; no ``[DONE]`` follows."""
    return b"data: " + encode({"error": error_object(error)}) + b"\n\n"


def model_row(card: ModelCard, created: int) -> dict[str, Any]:
    """Render a model of the catalogue."""
    row = {"id": card.id, "object": "model", "created": created, "owned_by": card.owned_by}
    if card.context:
        row["max_model_len"] = row["context_length"] = card.context
    return {**row, **card.extra}


def reasoning(
    effort: Effort | None, *, enabled: bool | None = None, budget_tokens: int | None = None
) -> Reasoning:
    """
    Read how much to think.

    Args:
        effort: As the client says; ``none`` is not to think, any other is to think.
        enabled: What the client says besides; it goes before *effort*.
        budget_tokens: Tokens of thought at most; none is not to think.
    """
    known = "high" if effort in ("xhigh", "max") else effort
    if enabled is None and (effort is not None or budget_tokens is not None):
        enabled = effort != "none" and budget_tokens != 0
    return Reasoning(enabled=enabled, effort=known, budget_tokens=budget_tokens)


def effort_of(wanted: Reasoning) -> str | None:
    """Return the effort to ask a server for: as it was said, else by the size of the budget."""
    if wanted.effort or wanted.budget_tokens is None:
        return wanted.effort
    sizes = ((2_000, "low"), (8_000, "medium"))
    return next((effort for size, effort in sizes if wanted.budget_tokens < size), "high")
