"""The contracts of dialects; a broken one raises `AssertionError` with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import attrs
import msgspec

from cortex.api import ChatClient, ChatDialect, EmbeddingDialect, ModelsDialect
from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import ChatRequest, Embeddings
from cortex.errors import InvalidRequest, ModelNotFound
from cortex.fleet.model import ModelCard
from cortex.testing.expecting import expect

STREAMS = {"text/event-stream": b"\n\n", "application/x-ndjson": b"\n"}  # how an event ends
NONSENSE = (b"", b"{", b"[]", b'{"model": 1}', b"[" * 100_000, b"\xff")
NO_MODEL = ModelNotFound("no model is called 'x'", param="model")
USAGE = Usage(prompt_tokens=3, completion_tokens=7)
STARTED = Started(prompt_tokens=3)
FINISHED = Finished(reason="stop", usage=USAGE)
TEXT = (TextDelta("grün "), TextDelta("\n\ndata: x"))
THOUGHT = (ThinkingDelta("let me "), ThinkingDelta("ponder\n"))
CALLS = (
    ToolCallStarted(index=0, id="call_0", name="look_up"),
    ToolCallDelta(index=0, arguments='{"city": "K'),
    ToolCallDelta(index=0, arguments='öln"}'),
    ToolCallStarted(index=1, id="call_1", name="clock"),
    ToolCallDelta(index=1, arguments="{}"),
)
ANSWERS: tuple[tuple[ChatEvent, ...], ...] = (
    (STARTED, FINISHED),
    (STARTED, *TEXT, FINISHED),
    (STARTED, *THOUGHT, *TEXT, attrs.evolve(FINISHED, reason="length")),
    (STARTED, *THOUGHT, *CALLS, attrs.evolve(FINISHED, reason="tool_calls")),
    (STARTED, *TEXT, *CALLS, attrs.evolve(FINISHED, reason="tool_calls")),
)


def dialect_contract(dialect: ChatDialect, request: bytes, streamed: bytes) -> None:
    """
    Hold a dialect that answers chats to what cortex relies on, its client half too.

    Args:
        dialect: As its factory builds it.
        request: The body of a request it takes, not streaming.
        streamed: The same, streaming.
    """
    operations = [endpoint.operation for endpoint in dialect.endpoints]
    expect("chat" in operations, "no endpoint has the operation 'chat'")
    refuses_nonsense("parse_request", dialect.parse_request)
    for body, is_stream in ((request, False), (streamed, True)):
        chat = dialect.parse_request(body, "id-1")
        expect(chat.stream is is_stream, f"stream is {chat.stream}, {is_stream} was asked for")
        expect(chat.id == "id-1", "the request has another id than parse_request was given")
        for answer in ANSWERS:
            answers_well(dialect, chat, answer)
    renders_errors(dialect, dialect.parse_request(streamed, "id-1"))
    if dialect.client is not None:
        asks_well(dialect, dialect.client, dialect.parse_request(streamed, "id-1"))
    if {"list_models", "list_loaded"} & {*operations}:
        lists_models(cast("ModelsDialect", dialect), operations)


def embedding_contract(dialect: EmbeddingDialect, request: bytes) -> None:
    """
    Hold a dialect that embeds to what cortex relies on.

    Args:
        dialect: As its factory builds it.
        request: The body of a request it takes.
    """
    operations = [endpoint.operation for endpoint in dialect.endpoints]
    expect("embed" in operations, "no endpoint has the operation 'embed'")
    refuses_nonsense("parse_embedding", dialect.parse_embedding)
    asked = dialect.parse_embedding(request, "id-1")
    expect(asked.id == "id-1", "the request has another id than parse_embedding was given")
    expect(asked.inputs, "the request has no inputs")
    made = Embeddings(vectors=((0.6, 0.8),) * len(asked.inputs), prompt_tokens=3)
    try:
        msgspec.json.decode(dialect.render_embeddings(asked, made))
    except msgspec.DecodeError:
        raise AssertionError("render_embeddings returns no JSON") from None
    status, body = dialect.render_error(NO_MODEL)
    expect(status == NO_MODEL.status, f"{NO_MODEL.status} is rendered as {status}")
    expect(b"no model is called" in body, "the message of an error is not rendered")


def refuses_nonsense(name: str, parse: Callable[[bytes, str], object]) -> None:
    """Expect *parse*, called *name*, to raise `InvalidRequest` for what is no request."""
    for nonsense in NONSENSE:
        try:
            parse(nonsense, "id")
        except InvalidRequest:
            continue
        raise AssertionError(f"{name} takes {nonsense[:20]!r}; InvalidRequest is due")


def answers_well(dialect: ChatDialect, chat: ChatRequest, answer: Sequence[ChatEvent]) -> None:
    """Expect *answer* to be rendered for every choice, the end with the last of them."""
    encoder = dialect.encoder(chat, 1)
    kinds = list(STREAMS) if chat.stream else ["application/json"]
    expect(encoder.content_type in kinds, f"content_type is none of {', '.join(kinds)}")
    choices = range(len(chat.choices()))
    *pieces, last = [encoder.feed(event, choice) for choice in choices for event in answer]
    expect(last, "nothing is sent at the end")
    waiting = dialect.encoder(chat, 1)
    alive = [waiting.keep_alive()]
    waiting.feed(STARTED)
    alive.append(waiting.keep_alive())
    if chat.stream:
        end = STREAMS[encoder.content_type]
        whole = all(piece.endswith(end) for piece in (*pieces, last, *alive) if piece)
        expect(whole, "bytes of a stream end within an event")
    else:
        expect(not any(pieces), "a whole body comes with its last event, at once")
        expect(not any(alive), "a whole body has bytes that keep it alive")


def renders_errors(dialect: ChatDialect, chat: ChatRequest) -> None:
    """Expect every rendering of an error to have its message."""
    status, body = dialect.render_error(NO_MODEL)
    expect(status == NO_MODEL.status, f"{NO_MODEL.status} is rendered as {status}")
    expect(b"no model is called" in body, "the message of an error is not rendered")
    last = dialect.encoder(chat, 1).feed(Failed(NO_MODEL))
    expect(b"no model is called" in last, "the event of a failure lacks its message")
    broken = dialect.render_stream_error(NO_MODEL)
    expect(b"no model is called" in broken, "a broken stream says why")


def asks_well(dialect: ChatDialect, client: ChatClient, chat: ChatRequest) -> None:
    """Expect the two halves of a dialect to understand each other."""
    paths = [endpoint.path for endpoint in dialect.endpoints if endpoint.operation == "chat"]
    expect(client.path in paths, f"the client half asks at {client.path}, which is no endpoint")
    body = client.render_request(chat)
    asked = dialect.parse_request(body, chat.id)
    expect(asked.stream, "render_request asks for no stream")
    expect(asked.model == chat.model, f"the client half asks for the model {asked.model!r}")
    said = [(turn.role, turn.text) for turn in chat.messages]
    expect([(t.role, t.text) for t in asked.messages] == said, "render_request loses messages")
    expect(
        client.render_request(asked) == body, "a request, rendered and read, renders differently"
    )
    for answer in ANSWERS:
        reads_well(dialect, client, asked, answer)
    encoder, decoder = dialect.encoder(asked, 1), client.decoder(asked)
    read = decoder.feed(encoder.feed(STARTED) + encoder.feed(Failed(NO_MODEL)))
    failure = next((event for _, event in read if isinstance(event, Failed)), None)
    said_why = failure is not None and "no model is called" in failure.error.message
    expect(said_why, "the decoder loses the message of a failure")
    error = client.read_error(*dialect.render_error(NO_MODEL))
    expect(error.status == NO_MODEL.status, f"read_error reads {NO_MODEL.status} as {error.status}")
    expect("no model is called" in error.message, "read_error loses the message")


def reads_well(
    dialect: ChatDialect, client: ChatClient, chat: ChatRequest, answer: Sequence[ChatEvent]
) -> None:
    """Expect *answer*, rendered and cut anywhere, to be read, as far as its stream has it."""
    encoder, decoder = dialect.encoder(chat, 1), client.decoder(chat)
    pieces = [encoder.feed(event) for event in answer]
    stream = b"".join(pieces)
    found = [pair for byte in stream for pair in decoder.feed(bytes([byte]))]
    read = [event for _, event in (*found, *decoder.end())]
    expect(isinstance(read[0], Started), f"the decoder says {read[0]} first; Started is due")
    expect(text_of(read, TextDelta) == text_of(answer, TextDelta), "the decoder loses text")
    if b"ponder" in stream:
        same = text_of(read, ThinkingDelta) == text_of(answer, ThinkingDelta)
        expect(same, "the decoder loses thoughts")
    if b"look_up" in stream:
        expect(calls_of(read) == calls_of(answer), "the decoder loses calls")
    last = read[-1]
    expect(isinstance(last, Finished), f"the decoder says {last} last; Finished is due")
    if isinstance(last, Finished):
        reason = cast("Finished", answer[-1]).reason
        if reason != "tool_calls" or b"look_up" in stream:
            expect(last.reason == reason, f"the decoder reads {reason} as {last.reason}")
        counts = last.usage.prompt_tokens, last.usage.completion_tokens
        expect(counts == (3, 7), f"the decoder counts {counts} tokens of (3, 7)")
    cut = client.decoder(chat)
    ending = [*cut.feed(b"".join(pieces[:-1])), *cut.end()]
    expect(isinstance(ending[-1][1], Failed), "the decoder takes an answer without its end for one")


def text_of(events: Sequence[ChatEvent], kind: type[TextDelta | ThinkingDelta]) -> str:
    """Return all text of one kind of delta."""
    return "".join(event.text for event in events if isinstance(event, kind))


def calls_of(events: Sequence[ChatEvent]) -> list[tuple[str, object]]:
    """Return the name and the arguments of each call."""
    said: dict[int, str] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            said[event.index] = said.get(event.index, "") + event.arguments
    return [
        (event.name, msgspec.json.decode(said.get(event.index) or "{}"))
        for event in events
        if isinstance(event, ToolCallStarted)
    ]


def lists_models(dialect: ModelsDialect, operations: Sequence[str]) -> None:
    """Expect a model's id wherever it is listed."""
    card = ModelCard(id="org/model", context=512)
    if "list_models" in operations:
        for rendered in (dialect.render_models([card], 1, {}), dialect.render_model(card, 1)):
            expect(b"org/model" in rendered, "a model's row lacks its id")
    if "list_loaded" in operations:
        expect(
            b"org/model" in dialect.render_loaded([card], 1), "a loaded model's row lacks its id"
        )
