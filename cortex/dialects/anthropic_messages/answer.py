"""What whole answers and streams have in common: the message around the content, its end."""

from __future__ import annotations

from typing import Any

from cortex.chat.events import Finished, Usage
from cortex.chat.request import ChatRequest


def message(request: ChatRequest, **more: Any) -> dict[str, Any]:
    """Render a message; a stream begins with one that is still empty."""
    return {
        "id": f"msg_{request.id}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        **more,
    }


def stop(event: Finished, *, has_calls: bool) -> dict[str, str | None]:
    """Render why an answer ended; a turn with calls is one even where the engine does not say."""
    sequence = None
    match event.reason:
        case "length":
            reason = "max_tokens"
        case "content_filter":
            reason = "refusal"
        case "tool_calls":
            reason = "tool_use"
        case _ if has_calls:
            reason = "tool_use"
        case _:
            sequence = event.stop_string
            reason = "end_turn" if sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Render token counts; those read from a cache are counted apart."""
    said: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens:
        said["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return said
