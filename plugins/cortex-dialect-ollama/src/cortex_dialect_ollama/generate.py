"""``POST /api/generate``: one prompt, through the model's template or as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cortex.api import ChatClient, Endpoint, ReplyEncoder
from cortex.chat.request import ChatRequest, Message, Part, Text
from cortex.errors import CortexError, UnsupportedParameter
from cortex.wire import decode
from cortex_dialect_ollama.conversation import parse_images
from cortex_dialect_ollama.options import WireAsk
from cortex_dialect_ollama.replies import BodyEncoder, LineEncoder, generate_piece, render_error

REFUSED = ("suffix", "template", "context", "width", "height", "steps")


class WireGenerate(WireAsk, kw_only=True):
    """The body."""

    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    # Known, and not honoured unless they say nothing.
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    width: Any = None
    height: Any = None
    steps: Any = None


_decode = msgspec.json.Decoder(WireGenerate).decode


class OllamaGenerate:
    """Answers to a prompt."""

    client: ChatClient | None = None

    endpoints: Sequence[Endpoint] = (Endpoint("POST", "/api/generate", "chat"),)

    def parse_request(self, body: bytes, request_id: str) -> ChatRequest:
        wire = decode(_decode, body)
        for param in REFUSED:
            if getattr(wire, param):
                raise UnsupportedParameter(f"{param} is not supported", param=param)
        if not (wire.prompt or wire.images):
            wire.refuse_unload()
        messages = parse_prompt(wire)
        return ChatRequest(
            id=request_id,
            model=wire.model,
            messages=messages,
            prompts=(wire.prompt,) if wire.raw and wire.prompt else (),
            sampling=wire.sampling(),
            format=wire.json_format(),
            reasoning=wire.reasoning(),
            stream=wire.streams,
        )

    def encoder(self, request: ChatRequest, created: int) -> ReplyEncoder:
        kind = LineEncoder if request.stream else BodyEncoder
        return kind(request, created, generate_piece)

    def render_error(self, error: CortexError, request_id: str = "") -> tuple[int, bytes]:  # noqa: ARG002
        return error.status, render_error(error)

    def render_stream_error(self, error: CortexError, request_id: str = "") -> bytes:  # noqa: ARG002
        return render_error(error) + b"\n"


def parse_prompt(wire: WireGenerate) -> tuple[Message, ...]:
    """Return the turns of a prompt; a raw one has none."""
    images = parse_images(wire.images or ())
    if wire.raw:
        for param in ("system", "images"):
            if getattr(wire, param):
                raise UnsupportedParameter(f"{param} has no place in a raw prompt", param=param)
        return ()
    if not (wire.prompt or images):
        return ()
    parts: tuple[Part, ...] = (*images, *((Text(wire.prompt),) if wire.prompt else ()))
    user = Message(role="user", parts=parts)
    if not wire.system:
        return (user,)
    return Message(role="system", parts=(Text(wire.system),)), user
