"""
Ollama's API for cortex, as a plugin like any other.

Reference: https://docs.ollama.com/api.  Bodies that differ are dialects of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import Dialect, Register
from cortex_dialect_ollama.chat import OllamaChat
from cortex_dialect_ollama.embed import OllamaEmbed, OllamaEmbeddings
from cortex_dialect_ollama.generate import OllamaGenerate

TAG = ":latest"  # what clients of Ollama add to a name without a tag


@hookimpl
def cortex_register_dialects(register: Register[Dialect]) -> None:
    register(
        "ollama-chat", OllamaChat, summary="POST /api/chat, GET /api/tags and what goes with it"
    )
    register("ollama-generate", OllamaGenerate, summary="POST /api/generate")
    register("ollama-embed", OllamaEmbed, summary="POST /api/embed")
    register("ollama-embeddings", OllamaEmbeddings, summary="POST /api/embeddings, for old clients")


@hookimpl
def cortex_choose_model(name: str, known: Sequence[str]) -> str | None:
    plain = name.removesuffix(TAG)
    return plain if plain != name and plain in known else None
