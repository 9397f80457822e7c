"""OpenAI's legacy Completions."""

from __future__ import annotations

from cortex.dialects.openai_completions.dialect import (
    OpenAICompletions,
    cortex_register_dialects,
)

__all__ = ["OpenAICompletions", "cortex_register_dialects"]
