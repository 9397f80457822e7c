"""
OpenAI Chat Completions.

Reference: https://platform.openai.com/docs/api-reference/chat.  Unknown fields are ignored; a
field we know and cannot honour is a 400 that names it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import ChatClient, Dialect, Endpoint, Register, ReplyEncoder
from cortex.chat.request import ChatRequest
from cortex.dialects.openai import OpenAIErrors, OpenAIModels
from cortex.dialects.openai_chat.client import OpenAIChatClient
from cortex.dialects.openai_chat.reply import BodyEncoder, StreamEncoder
from cortex.dialects.openai_chat.request import parse_request


class OpenAIChat(OpenAIErrors, OpenAIModels):
    """Both JSON bodies and SSE streams of chat completions."""

    client: ChatClient | None = OpenAIChatClient()

    endpoints: Sequence[Endpoint] = (
        Endpoint("POST", "/v1/chat/completions", "chat"),
        Endpoint("GET", "/v1/models", "list_models"),
        Endpoint("GET", "/v1/models/{model:.+}", "get_model"),
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
