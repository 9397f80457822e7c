"""``POST /api/embed``, and ``POST /api/embeddings``, its forerunner for one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from cortex.api import Endpoint
from cortex.chat.request import EmbeddingRequest, Embeddings
from cortex.errors import CortexError
from cortex.wire import decode, encode
from cortex_dialect_ollama.replies import render_error

Name = Annotated[str, msgspec.Meta(min_length=1)]
Texts = Annotated[list[str], msgspec.Meta(min_length=1)]


class WireEmbed(msgspec.Struct):
    """The body of ``/api/embed``."""

    model: Name
    input: str | Texts
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


class WireEmbeddings(msgspec.Struct):
    """The body of ``/api/embeddings``."""

    model: Name
    prompt: str


_decode = msgspec.json.Decoder(WireEmbed).decode
_decode_one = msgspec.json.Decoder(WireEmbeddings).decode


class OllamaEmbed:
    """A vector for each text."""

    endpoints: Sequence[Endpoint] = (Endpoint("POST", "/api/embed", "embed"),)

    def parse_embedding(self, body: bytes, request_id: str) -> EmbeddingRequest:
        wire = decode(_decode, body)
        inputs = (wire.input,) if isinstance(wire.input, str) else tuple(wire.input)
        return EmbeddingRequest(
            id=request_id, model=wire.model, inputs=inputs, dimensions=wire.dimensions
        )

    def render_embeddings(self, request: EmbeddingRequest, embeddings: Embeddings) -> bytes:
        return encode(
            {
                "model": request.model,
                "embeddings": embeddings.vectors,
                "prompt_eval_count": embeddings.prompt_tokens,
            }
        )

    def render_error(self, error: CortexError, request_id: str = "") -> tuple[int, bytes]:  # noqa: ARG002
        return error.status, render_error(error)


class OllamaEmbeddings(OllamaEmbed):
    """The vector of one text."""

    endpoints: Sequence[Endpoint] = (Endpoint("POST", "/api/embeddings", "embed"),)

    def parse_embedding(self, body: bytes, request_id: str) -> EmbeddingRequest:
        wire = decode(_decode_one, body)
        return EmbeddingRequest(id=request_id, model=wire.model, inputs=(wire.prompt,))

    def render_embeddings(self, request: EmbeddingRequest, embeddings: Embeddings) -> bytes:  # noqa: ARG002
        return encode({"embedding": embeddings.vectors[0]})
