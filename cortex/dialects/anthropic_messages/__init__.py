"""Anthropic Messages."""

from __future__ import annotations

from cortex.dialects.anthropic_messages.dialect import AnthropicMessages, cortex_register_dialects

__all__ = ["AnthropicMessages", "cortex_register_dialects"]
