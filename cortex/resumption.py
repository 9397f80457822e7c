"""
An answer another neuron began, on its way from the gateway to the neuron that goes on with it.

What was said of it goes behind the request's body; a header says how much of the body that is.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import msgspec

from cortex.chat.request import ChatRequest, Message, Text, Thinking
from cortex.errors import InvalidRequest
from cortex.wire import encode

HEADER = "x-cortex-begun"


class Said(msgspec.Struct):
    """What was said of an answer."""

    thought: str = ""
    text: str = ""


_decode = msgspec.json.Decoder(Said).decode


def pack(body: bytes, said: Said) -> tuple[bytes, int]:
    """Return a body with *said* behind it, and how long that is."""
    more = encode(said)
    return body + more, len(more)


def unpack(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, Said | None]:
    """
    Return a request's own body, and what was said of its answer.

    Raises:
        InvalidRequest: It cannot be read.
    """
    if (length := headers.get(HEADER)) is None:
        return body, None
    try:
        at = range(len(body))[-int(length)]
        return body[:at], _decode(body[at:])
    except (ValueError, IndexError):  # msgspec's errors are some of the first
        raise InvalidRequest(f"{HEADER}: the body does not end with {length} bytes of it") from None


def resumed(request: ChatRequest, said: Said | None) -> ChatRequest:
    """Return a request that goes on with what was said."""
    if said is None:
        return request
    parts = (Thinking(said.thought),) if said.thought else ()
    turn = Message(role="assistant", parts=(*parts, Text(said.text)))
    return attrs.evolve(request, messages=(*request.messages, turn), resumes=True)
