"""The response object, and the items of its output."""

from __future__ import annotations

from typing import Any

from cortex.chat.events import FinishReason, TokenLogprob, Usage
from cortex.chat.request import ChatRequest
from cortex.dialects.openai import usage_object

INCOMPLETE: dict[FinishReason, str] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}


def reply_id(request_id: str) -> str:
    """Return the id of the answer to a request."""
    return f"resp_{request_id}"


def item_id(prefix: str, request_id: str, place: object) -> str:
    """Return the id of an item; `cortex.dialects.openai_responses.record` reads it."""
    return f"{prefix}_{request_id}_{place}"


def response_object(request: ChatRequest, created: int) -> dict[str, Any]:
    """Return a response that has just begun."""
    return {
        "id": reply_id(request.id),
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": request.model,
        "output": [],
        "service_tier": "default",
        "usage": None,
        **request.private.echo,
    }


def finished(
    response: dict[str, Any], output: list[dict[str, Any]], reason: FinishReason, usage: Usage
) -> dict[str, Any]:
    """Return a response that has ended."""
    why = INCOMPLETE.get(reason)
    return {
        **response,
        "status": "incomplete" if why else "completed",
        "incomplete_details": {"reason": why} if why else None,
        "output": output,
        "usage": token_counts(usage),
    }


def token_counts(usage: Usage) -> dict[str, Any]:
    """Render token counts, with our own timings beside them."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "cortex": usage_object(usage)["cortex"],
    }


def logprob_object(token: TokenLogprob) -> dict[str, Any]:
    """Render the log probability of a token."""
    tops = [{"token": t.token, "logprob": t.logprob, "bytes": [*t.data]} for t in token.top]
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": [*token.data],
        "top_logprobs": tops,
    }
