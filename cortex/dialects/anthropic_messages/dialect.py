"""
Anthropic Messages, token counts and the list of models.

Reference: https://platform.claude.com/docs/en/api/messages.  Any ``anthropic-version`` will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cortex import hookimpl
from cortex.api import ChatClient, Dialect, Endpoint, Register, ReplyEncoder
from cortex.chat.request import ChatRequest, ToolCall
from cortex.dialects.anthropic_messages import errors, models
from cortex.dialects.anthropic_messages.body import BodyEncoder
from cortex.dialects.anthropic_messages.client import MessagesClient
from cortex.dialects.anthropic_messages.request import read_request
from cortex.dialects.anthropic_messages.shapes import COUNT, MESSAGE, MODEL, MODELS
from cortex.dialects.anthropic_messages.stream import StreamEncoder
from cortex.dialects.anthropic_messages.wire import WireRequest
from cortex.errors import CortexError, MissingParameter, UnsupportedParameter
from cortex.fleet.model import ModelCard
from cortex.wire import decode, encode

VERSION = "anthropic-version"
_decode = msgspec.json.Decoder(WireRequest).decode


class AnthropicMessages:
    """See the module."""

    client: ChatClient | None = MessagesClient()

    endpoints: Sequence[Endpoint] = (
        Endpoint("POST", "/v1/messages", "chat", shape=MESSAGE),
        Endpoint("POST", "/v1/messages/count_tokens", "count", shape=COUNT),
        Endpoint("GET", "/v1/models", "list_models", header=VERSION, shape=MODELS),
        Endpoint("GET", "/v1/models/{model:.+}", "get_model", header=VERSION, shape=MODEL),
    )

    def parse_request(self, body: bytes, request_id: str) -> ChatRequest:
        wire = decode(_decode, body)
        if wire.max_tokens is None:
            raise MissingParameter("max_tokens is required", param="max_tokens")
        request = read_request(wire, request_id)
        if any(isinstance(p, ToolCall) for turn in request.messages[-1:] for p in turn.parts):
            param = f"messages[{len(wire.messages) - 1}].content"
            raise UnsupportedParameter(
                f"{param}: the results of the turn's calls are missing", param=param
            )
        return request

    def parse_count(self, body: bytes, request_id: str) -> ChatRequest:
        return read_request(decode(_decode, body), request_id)

    def render_count(self, prompt_tokens: int) -> bytes:
        return encode({"input_tokens": prompt_tokens})

    def encoder(self, request: ChatRequest, created: int) -> ReplyEncoder:  # noqa: ARG002
        return StreamEncoder(request) if request.stream else BodyEncoder(request)

    def render_models(
        self, cards: Sequence[ModelCard], created: int, query: Mapping[str, str]
    ) -> bytes:
        return models.page(cards, created, query)

    def render_model(self, card: ModelCard, created: int) -> bytes:
        return encode(models.row(card, created))

    def render_error(self, error: CortexError, request_id: str = "") -> tuple[int, bytes]:
        return errors.status_of(error), encode(errors.envelope(error, request_id))

    def render_stream_error(self, error: CortexError, request_id: str = "") -> bytes:  # noqa: ARG002
        return errors.event(error)


@hookimpl
def cortex_register_dialects(register: Register[Dialect]) -> None:
    register(
        "anthropic-messages",
        AnthropicMessages,
        summary="POST /v1/messages and /v1/messages/count_tokens, GET /v1/models",
    )
