"""
OpenAI Chat Completions.

Reference: https://platform.openai.com/docs/api-reference/chat.  Unknown fields are ignored; a
field we know and cannot honour is a 400 that names it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import ChatClient, Dialect, Endpoint, Register, ReplyEncoder, Shape
from cortex.chat.request import ChatRequest
from cortex.dialects.openai import OpenAIErrors, OpenAIModels
from cortex.dialects.openai_chat.client import OpenAIChatClient
from cortex.dialects.openai_chat.reply import BodyEncoder, StreamEncoder
from cortex.dialects.openai_chat.request import parse_request
from cortex.dialects.openai_chat.wire import WireRequest
from cortex.dialects.openai_shapes import ChatCompletion, ErrorBody, ModelRow, ModelRows

CHAT = Shape(
    body=WireRequest, answer=ChatCompletion, error=ErrorBody, stream=StreamEncoder.content_type
)
MODELS = Shape(answer=ModelRows, error=ErrorBody)
MODEL = Shape(answer=ModelRow, error=ErrorBody)


class OpenAIChat(OpenAIErrors, OpenAIModels):
    """Both JSON bodies and SSE streams of chat completions."""

    client: ChatClient | None = OpenAIChatClient()

    endpoints: Sequence[Endpoint] = (
        Endpoint("POST", "/v1/chat/completions", "chat", shape=CHAT),
        Endpoint("GET", "/v1/models", "list_models", shape=MODELS),
        Endpoint("GET", "/v1/models/{model:.+}", "get_model", shape=MODEL),
    )

    def parse_request(self, body: bytes, request_id: str) -> ChatRequest:
        return parse_request(body, request_id)

    def encoder(self, request: ChatRequest, created: int) -> ReplyEncoder:
        if request.stream:
            return StreamEncoder(request, created)
        return BodyEncoder(request, created)


@hookimpl
def cortex_register_dialects(register: Register[Dialect]) -> None:
    register("openai-chat", OpenAIChat, summary="POST /v1/chat/completions, GET /v1/models")
