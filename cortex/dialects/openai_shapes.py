"""What OpenAI's dialects answer, as types: for ``/openapi.json``, checked against real answers."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType


class ErrorCause(Struct):
    """An error; figures, where there are any, stand beside these."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorBody(Struct):
    """An answer with an error status."""

    error: ErrorCause


class ModelLimit(Struct):
    """Tokens; 0 is unknown."""

    context: int
    output: int


class ModelPlace(Struct):
    """Where a model is."""

    node: str
    status: str
    vram_estimate_mb: int
    progress: float | UnsetType = UNSET


class ModelRow(Struct):
    """A model; a neuron leaves out what is about a fleet."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | UnsetType = UNSET
    context_length: int | UnsetType = UNSET
    loaded: bool | UnsetType = UNSET
    feasible_on: list[str] | UnsetType = UNSET
    locations: list[ModelPlace] | UnsetType = UNSET
    capabilities: list[str] | UnsetType = UNSET
    limit: ModelLimit | UnsetType = UNSET
    alias_of: str | UnsetType = UNSET


class ModelRows(Struct):
    """``GET /v1/models``."""

    object: Literal["list"]
    data: list[ModelRow]


class CachedTokens(Struct):
    """Of the prompt."""

    cached_tokens: int


class ReasoningTokens(Struct):
    """Of the answer."""

    reasoning_tokens: int


class Timings(Struct):
    """Of one answer."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


class CompletionUsage(Struct):
    """Tokens of an answer, and our timings."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens
    cortex: Timings


class CallFunction(Struct):
    """What is called, with arguments in JSON."""

    name: str
    arguments: str


class Call(Struct):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CallFunction


class SaidMessage(Struct):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class ChatChoice(Struct):
    """One of the answers asked for."""

    index: int
    message: SaidMessage
    logprobs: dict[str, Any] | None
    finish_reason: str
    stop_reason: str | UnsetType = UNSET


class ChatCompletion(Struct):
    """``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class TextChoice(Struct):
    """One of the texts asked for."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str
    stop_reason: str | UnsetType = UNSET


class TextCompletion(Struct):
    """``POST /v1/completions``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage


class EmbeddingUsage(Struct):
    """Tokens of the inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingRow(Struct):
    """The vector of an input, or base64 of it."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingRows(Struct):
    """``POST /v1/embeddings``."""

    object: Literal["list"]
    data: list[EmbeddingRow]
    model: str
    usage: EmbeddingUsage


class CachedInput(Struct):
    """Of the input."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(Struct):
    """Tokens of a response, and our timings."""

    input_tokens: int
    input_tokens_details: CachedInput
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int
    cortex: Timings


class ResponseBody(Struct):
    """A response; what it repeats of its request stands beside these."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool
    error: dict[str, Any] | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    service_tier: str
    usage: ResponseUsage | None


class DeletedResponse(Struct):
    """``DELETE /v1/responses/{id}``."""

    id: str
    object: Literal["response"]
    deleted: bool


class InputItems(Struct):
    """``GET /v1/responses/{id}/input_items``."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
