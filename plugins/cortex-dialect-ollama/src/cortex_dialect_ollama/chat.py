"""``POST /api/chat``, and what is asked before it: which models, which version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cortex.api import ChatClient, Endpoint, ReplyEncoder
from cortex.chat.request import ChatRequest
from cortex.errors import CortexError
from cortex.fleet.model import ModelCard
from cortex.wire import decode, encode
from cortex_dialect_ollama import models
from cortex_dialect_ollama.client import OllamaChatClient
from cortex_dialect_ollama.conversation import (
    WireMessage,
    WireTool,
    parse_messages,
    parse_tools,
)
from cortex_dialect_ollama.options import WireAsk
from cortex_dialect_ollama.replies import BodyEncoder, LineEncoder, chat_piece, render_error

API_VERSION = "0.12.11"  # of the Ollama whose API this is


class WireChat(WireAsk, kw_only=True):
    """The body."""

    messages: list[WireMessage] | None = None
    tools: list[WireTool] | None = None


class WireModel(msgspec.Struct):
    """The body of ``POST /api/show``; old clients say `name`."""

    model: str = ""
    name: str = ""


_decode = msgspec.json.Decoder(WireChat).decode
_decode_model = msgspec.json.Decoder(WireModel).decode


class OllamaChat:
    """Chats, and the lists of models."""

    client: ChatClient | None = OllamaChatClient()

    endpoints: Sequence[Endpoint] = (
        Endpoint("POST", "/api/chat", "chat"),
        Endpoint("GET", "/api/tags", "list_models"),
        Endpoint("GET", "/api/ps", "list_loaded"),
        Endpoint("POST", "/api/show", "get_model"),
        Endpoint("GET", "/api/version", "version"),
    )

    def parse_request(self, body: bytes, request_id: str) -> ChatRequest:
        wire = decode(_decode, body)
        if not wire.messages:
            wire.refuse_unload()
        return ChatRequest(
            id=request_id,
            model=wire.model,
            messages=parse_messages(wire.messages or ()),
            sampling=wire.sampling(),
            tools=parse_tools(wire.tools or ()),
            format=wire.json_format(),
            reasoning=wire.reasoning(),
            stream=wire.streams,
        )

    def encoder(self, request: ChatRequest, created: int) -> ReplyEncoder:
        kind = LineEncoder if request.stream else BodyEncoder
        return kind(request, created, chat_piece)

    def render_models(
        self,
        cards: Sequence[ModelCard],
        created: int,
        query: Mapping[str, str],  # noqa: ARG002
    ) -> bytes:
        return encode({"models": [models.tag(card, created) for card in cards]})

    def render_loaded(self, cards: Sequence[ModelCard], created: int) -> bytes:
        return encode({"models": [models.process(card, created) for card in cards]})

    def parse_model(self, body: bytes) -> str:
        wire = decode(_decode_model, body)
        return wire.model or wire.name

    def render_model(self, card: ModelCard, created: int) -> bytes:
        return encode(models.shown(card, created))

    def render_version(self, version: str) -> bytes:
        return encode({"version": API_VERSION, "cortex": version})

    def render_error(self, error: CortexError, request_id: str = "") -> tuple[int, bytes]:  # noqa: ARG002
        return error.status, render_error(error)

    def render_stream_error(self, error: CortexError, request_id: str = "") -> bytes:  # noqa: ARG002
        return render_error(error) + b"\n"
