"""What a Responses request looks like on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from cortex.dialects.openai import Effort

NULL = b"null"


class WirePart(msgspec.Struct):
    """An element of a content array, of whichever type."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    file_data: str | None = None
    filename: str | None = None


Content = str | list[WirePart] | None


class WireItem(msgspec.Struct, kw_only=True):
    """An element of ``input``, of whichever type; without one it is a message or a reference."""

    type: str | None = None
    id: str | None = None
    role: str | None = None
    content: Content = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: Any = None
    output: Any = None
    summary: list[WirePart] | None = None
    encrypted_content: str | None = None

    @property
    def kind(self) -> str:
        """Its type, spelled out."""
        return self.type or ("message" if self.role else "item_reference" if self.id else "message")


class WireFormat(msgspec.Struct):
    """``format`` of a custom tool."""

    type: str
    syntax: str = ""
    definition: str = ""


class WireTool(msgspec.Struct, kw_only=True):
    """An element of ``tools``, of whichever type."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: WireFormat | None = None
    tools: list[WireTool] | None = None


class WireNamed(msgspec.Struct):
    """A tool named by ``tool_choice``."""

    type: str
    name: str | None = None
    namespace: str | None = None


class WireToolChoice(WireNamed):
    """``tool_choice`` as an object."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[WireNamed] = []


class WireTextFormat(msgspec.Struct):
    """``text.format``."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = ""
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class WireText(msgspec.Struct):
    """``text``."""

    format: WireTextFormat | None = None


class WireReasoning(msgspec.Struct):
    """``reasoning``."""

    effort: Effort | None = None


class WireRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/responses``."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    input: str | list[WireItem]
    instructions: str | None = None
    stream: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: list[WireTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | WireToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: WireText | None = None
    reasoning: WireReasoning | None = None
    # Known, and not honoured unless they say nothing.
    background: bool | None = None
    conversation: Any = None


class Echo(msgspec.Struct, kw_only=True):
    """What an answer repeats of its request, as it came."""

    instructions: msgspec.Raw = msgspec.Raw(NULL)
    max_output_tokens: msgspec.Raw = msgspec.Raw(NULL)
    max_tool_calls: msgspec.Raw = msgspec.Raw(NULL)
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    parallel_tool_calls: msgspec.Raw = msgspec.Raw(b"true")
    previous_response_id: msgspec.Raw = msgspec.Raw(NULL)
    prompt_cache_key: msgspec.Raw = msgspec.Raw(NULL)
    reasoning: msgspec.Raw = msgspec.Raw(b'{"effort":null,"summary":null}')
    safety_identifier: msgspec.Raw = msgspec.Raw(NULL)
    store: msgspec.Raw = msgspec.Raw(b"true")
    temperature: msgspec.Raw = msgspec.Raw(NULL)
    text: msgspec.Raw = msgspec.Raw(b'{"format":{"type":"text"}}')
    tool_choice: msgspec.Raw = msgspec.Raw(b'"auto"')
    tools: msgspec.Raw = msgspec.Raw(b"[]")
    top_logprobs: msgspec.Raw = msgspec.Raw(b"0")
    top_p: msgspec.Raw = msgspec.Raw(NULL)
    truncation: msgspec.Raw = msgspec.Raw(b'"disabled"')
    user: msgspec.Raw = msgspec.Raw(NULL)

    def fields(self) -> dict[str, msgspec.Raw]:
        """Return them all, each on one line; null is as good as absent."""
        found = {}
        for field in msgspec.structs.fields(self):
            said = msgspec.json.format(bytes(getattr(self, field.name)), indent=-1)
            found[field.name] = field.default if said == NULL else msgspec.Raw(said)
        return found


decode_request = msgspec.json.Decoder(WireRequest).decode
decode_echo = msgspec.json.Decoder(Echo).decode
