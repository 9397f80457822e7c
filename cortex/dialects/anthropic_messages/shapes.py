"""What the dialect answers, as types: for ``/openapi.json``, checked against real answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from cortex.api import Shape
from cortex.dialects.anthropic_messages.models import MAX_LIMIT
from cortex.dialects.anthropic_messages.stream import StreamEncoder
from cortex.dialects.anthropic_messages.wire import WireRequest


class MessageError(Struct):
    """An error."""

    type: str
    message: str


class MessageErrorBody(Struct):
    """An answer with an error status."""

    type: Literal["error"]
    error: MessageError
    request_id: str | UnsetType = UNSET


class SaidBlock(Struct):
    """A block of what the model said: what there is depends on its type."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    input: dict[str, Any] | UnsetType = UNSET


class ThinkingTokens(Struct):
    """Of the answer."""

    thinking_tokens: int


class MessageUsage(Struct):
    """Tokens of a message."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens | UnsetType = UNSET


class MessageBody(Struct):
    """``POST /v1/messages``."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[SaidBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class PromptTokens(Struct):
    """``POST /v1/messages/count_tokens``."""

    input_tokens: int


class ModelInfo(Struct):
    """A model."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: str
    max_input_tokens: int | None
    max_tokens: int | None


class ModelPage(Struct):
    """``GET /v1/models``."""

    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


PAGE: Mapping[str, Any] = {
    "before_id": str,
    "after_id": str,
    "limit": Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)],
}
MESSAGE = Shape(
    body=WireRequest, answer=MessageBody, error=MessageErrorBody, stream=StreamEncoder.content_type
)
COUNT = Shape(body=WireRequest, answer=PromptTokens, error=MessageErrorBody)
MODELS = Shape(answer=ModelPage, error=MessageErrorBody, query=PAGE)
MODEL = Shape(answer=ModelInfo, error=MessageErrorBody)
