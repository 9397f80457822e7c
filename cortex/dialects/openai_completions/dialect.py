"""
OpenAI's legacy Completions: bare prompts, continued.

Reference: https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import ChatClient, Dialect, Endpoint, Register, ReplyEncoder, Shape
from cortex.chat.request import ChatRequest
from cortex.dialects.openai import OpenAIErrors
from cortex.dialects.openai_completions.reply import BodyEncoder, StreamEncoder
from cortex.dialects.openai_completions.request import WireRequest, parse_request
from cortex.dialects.openai_shapes import ErrorBody, TextCompletion

SHAPE = Shape(
    body=WireRequest, answer=TextCompletion, error=ErrorBody, stream=StreamEncoder.content_type
)


class OpenAICompletions(OpenAIErrors):
    """Both JSON bodies and SSE streams of completions."""

    client: ChatClient | None = None

    endpoints: Sequence[Endpoint] = (Endpoint("POST", "/v1/completions", "chat", shape=SHAPE),)

    def parse_request(self, body: bytes, request_id: str) -> ChatRequest:
        return parse_request(body, request_id)

    def encoder(self, request: ChatRequest, created: int) -> ReplyEncoder:
        if request.stream:
            return StreamEncoder(request, created)
        return BodyEncoder(request, created)


@hookimpl
def cortex_register_dialects(register: Register[Dialect]) -> None:
    register("openai-completions", OpenAICompletions, summary="POST /v1/completions")
