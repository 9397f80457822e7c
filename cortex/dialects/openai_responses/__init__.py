"""OpenAI Responses; `dialect` is where to begin."""

from __future__ import annotations

from cortex.dialects.openai_responses.dialect import (
    OpenAIResponses,
    cortex_register_dialects,
)

__all__ = ["OpenAIResponses", "cortex_register_dialects"]
