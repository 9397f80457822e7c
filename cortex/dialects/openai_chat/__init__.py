"""OpenAI Chat Completions."""

from __future__ import annotations

from cortex.dialects.openai_chat.dialect import OpenAIChat, cortex_register_dialects

__all__ = ["OpenAIChat", "cortex_register_dialects"]
