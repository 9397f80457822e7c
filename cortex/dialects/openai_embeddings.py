"""
OpenAI Embeddings.

Reference: https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from cortex import hookimpl
from cortex.api import Dialect, Endpoint, Register, Shape
from cortex.chat.request import EmbeddingRequest, Embeddings
from cortex.dialects.openai import OpenAIErrors
from cortex.dialects.openai_prompts import WirePrompts, parse_prompts
from cortex.dialects.openai_sampling import Positive
from cortex.dialects.openai_shapes import EmbeddingRows, ErrorBody
from cortex.wire import decode, encode


class WireRequest(msgspec.Struct):
    """The body of ``POST /v1/embeddings``."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    input: WirePrompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None


_decode = msgspec.json.Decoder(WireRequest).decode
SHAPE = Shape(body=WireRequest, answer=EmbeddingRows, error=ErrorBody)


class OpenAIEmbeddings(OpenAIErrors):
    """Vectors as lists of numbers, or as base64 of little-endian float32."""

    endpoints: Sequence[Endpoint] = (Endpoint("POST", "/v1/embeddings", "embed", shape=SHAPE),)

    def parse_embedding(self, body: bytes, request_id: str) -> EmbeddingRequest:
        wire = decode(_decode, body)
        return EmbeddingRequest(
            id=request_id,
            model=wire.model,
            inputs=parse_prompts(wire.input, "input"),
            dimensions=wire.dimensions,
            private=wire.encoding_format or "float",
        )

    def render_embeddings(self, request: EmbeddingRequest, embeddings: Embeddings) -> bytes:
        is_base64 = request.private == "base64"
        rows = [
            {"object": "embedding", "index": index, "embedding": packed(v) if is_base64 else v}
            for index, v in enumerate(embeddings.vectors)
        ]
        tokens = embeddings.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return encode({"object": "list", "data": rows, "model": request.model, "usage": usage})


def packed(vector: Sequence[float]) -> bytes:
    """Return a vector as bytes; JSON has them as base64."""
    return struct.pack(f"<{len(vector)}f", *vector)


@hookimpl
def cortex_register_dialects(register: Register[Dialect]) -> None:
    register("openai-embeddings", OpenAIEmbeddings, summary="POST /v1/embeddings")
