"""
OpenAI Responses: both halves, and answers that are kept.

Reference: https://platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from cortex import hookimpl
from cortex.api import ChatClient, Dialect, Endpoint, Register, ReplyEncoder, Shape
from cortex.chat.request import ChatRequest, Ties
from cortex.dialects.openai import OpenAIErrors, error_object
from cortex.dialects.openai_responses import record as records
from cortex.dialects.openai_responses.client import OpenAIResponsesClient
from cortex.dialects.openai_responses.request import parse_request
from cortex.dialects.openai_responses.stream import BodyEncoder, StreamEncoder
from cortex.dialects.openai_responses.wire import WireRequest
from cortex.dialects.openai_shapes import DeletedResponse, ErrorBody, InputItems, ResponseBody
from cortex.errors import CortexError
from cortex.wire import encode

MADE = Shape(
    body=WireRequest, answer=ResponseBody, error=ErrorBody, stream=StreamEncoder.content_type
)
KEPT = Shape(answer=ResponseBody, error=ErrorBody)
DELETED = Shape(answer=DeletedResponse, error=ErrorBody)
ITEMS = Shape(
    answer=InputItems,
    error=ErrorBody,
    query={
        "order": Literal["asc", "desc"],
        "limit": Annotated[int, msgspec.Meta(ge=records.LIMITS[0], le=records.LIMITS[-1])],
        "after": str,
    },
)


class OpenAIResponses(OpenAIErrors):
    """Both JSON bodies and streams of responses."""

    client: ChatClient | None = OpenAIResponsesClient()

    endpoints: Sequence[Endpoint] = (
        Endpoint("POST", "/v1/responses", "chat", shape=MADE),
        Endpoint("GET", "/v1/responses/{id}", "get_reply", shape=KEPT),
        Endpoint("DELETE", "/v1/responses/{id}", "delete_reply", shape=DELETED),
        Endpoint("POST", "/v1/responses/{id}/cancel", "cancel_reply", shape=KEPT),
        Endpoint("GET", "/v1/responses/{id}/input_items", "list_inputs", shape=ITEMS),
    )

    def parse_request(self, body: bytes, request_id: str) -> ChatRequest:
        return parse_request(body, request_id)

    def encoder(self, request: ChatRequest, created: int) -> ReplyEncoder:
        kind = StreamEncoder if request.stream else BodyEncoder
        return kind(request, created)

    def render_stream_error(self, error: CortexError, request_id: str = "") -> bytes:
        """Render both events OpenAI sends: SDKs raise on the first, agents look for the second."""
        said = error_object(error)
        flat = {key: said[key] for key in ("code", "message", "param")}
        first = {"type": "error", **flat, "error": said, "sequence_number": 0}
        response = {
            "id": f"resp_{request_id}",
            "object": "response",
            "status": "failed",
            "error": {"code": "server_error", "message": str(error)},
            "output": [],
        }
        last = {"type": "response.failed", "sequence_number": 0, "response": response}
        return b"".join(
            b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), encode(event))
            for event in (first, last)
        )

    def ties(self, body: bytes) -> Ties:
        return records.ties(body)

    def join(self, body: bytes, records_by_id: Mapping[str, bytes]) -> bytes:
        return records.join(body, records_by_id)

    def record(self, body: bytes, reply: bytes) -> tuple[str, bytes] | None:
        return records.record(body, reply)

    def render_reply(self, record: bytes, query: Mapping[str, str]) -> bytes:
        return records.render_reply(record, query)

    def render_deleted(self, reply_id: str) -> bytes:
        return encode({"id": reply_id, "object": "response", "deleted": True})

    def render_inputs(self, record: bytes, query: Mapping[str, str]) -> bytes:
        return records.render_inputs(record, query)


@hookimpl
def cortex_register_dialects(register: Register[Dialect]) -> None:
    register("openai-responses", OpenAIResponses, summary="POST /v1/responses, and kept answers")
