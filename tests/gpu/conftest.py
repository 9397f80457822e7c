"""The small checkpoints of the engine's tests."""

from __future__ import annotations

from tests.neuron.engine.conftest import tiny_llama, tiny_qwen3

__all__ = ["tiny_llama", "tiny_qwen3"]
