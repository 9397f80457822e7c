"""Dialects: what speaks an API, as a server and as a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import attrs

from cortex.chat.events import ChatEvent
from cortex.chat.request import ChatRequest, EmbeddingRequest, Embeddings, Ties
from cortex.errors import CortexError
from cortex.fleet.model import ModelCard

Operation = Literal[
    "chat",
    "count",
    "embed",
    "list_models",
    "list_loaded",
    "get_model",
    "get_reply",
    "delete_reply",
    "cancel_reply",
    "list_inputs",
    "version",
]


@attrs.frozen(kw_only=True)
class Shape:
    """
    What goes in and out, as types msgspec knows; it is told in ``/openapi.json`` and not enforced.

    Attributes:
        body: Of the request; None is any.
        answer: Of an answer that is no stream; None is any.
        error: Of an answer with an error status; None is any.
        stream: The media type of an answer that is a stream, if there are such.
        query: The parameters in the query string, all optional.
    """

    body: Any = None
    answer: Any = None
    error: Any = None
    stream: str | None = None
    query: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Endpoint:
    """
    A path of a dialect's HTTP surface, in aiohttp's syntax.

    Attributes:
        operation: What it does; the dialect has the methods that go with it.
        header: Only requests with this header are meant; it sets apart dialects that share a path.
        shape: What goes in and out.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    operation: Operation
    header: str | None = None
    shape: Shape = attrs.field(factory=Shape)


class Dialect(Protocol):
    """
    An API dialect.  Sans-IO: bytes in, values out, and back.

    What else it has depends on the operations of its endpoints: `ChatDialect`, `CountDialect`,
    `EmbeddingDialect`, `ModelsDialect`, `ReplyDialect`, `VersionDialect`.  Endpoints that share an
    operation share its methods: paths whose bodies differ belong to dialects of their own.
    """

    endpoints: Sequence[Endpoint]

    def render_error(self, error: CortexError, request_id: str = "") -> tuple[int, bytes]:
        """Return status and body."""
        ...


class ReplyEncoder(Protocol):
    """
    Turns the events of one request's answers into the bytes of one HTTP body.

    Not streaming, `feed` returns nothing until the last event and then everything.  `Failed`
    becomes the dialect's error event in a stream; of a whole body it never gets to see one.
    """

    content_type: str

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:
        """
        Return the bytes of an event.

        Args:
            event: What happened.
            choice: Which of `ChatRequest.choices` it is about; the body ends with the last
                `Finished` of them.
        """
        ...

    def keep_alive(self) -> bytes:
        """Return bytes that tell a waiting client we are alive, or nothing."""
        ...


class ReplyDecoder(Protocol):
    """Reads a server's streamed answer; the other half of a `ReplyEncoder`."""

    def feed(self, data: bytes) -> Sequence[tuple[int, ChatEvent]]:
        """
        Return the events that *data*, cut anywhere, completes, each with its choice.

        After the last `Finished`, or a `Failed`, nothing comes.
        """
        ...

    def end(self) -> Sequence[tuple[int, ChatEvent]]:
        """Return what the end of the body means: a `Failed` unless the answer was whole."""
        ...


class ChatClient(Protocol):
    """
    The half of a dialect that lets cortex ask a server that speaks it.

    Attributes:
        path: Where its requests go.
    """

    path: str

    def render_request(self, request: ChatRequest) -> bytes:
        """
        Return the body of a streaming request that asks for the usage.

        Raises:
            UnsupportedParameter: The dialect cannot say what the request asks for.
        """
        ...

    def decoder(self, request: ChatRequest) -> ReplyDecoder: ...
    def read_error(self, status: int, body: bytes) -> CortexError:
        """Return what an answer with an error status says."""
        ...


class ChatDialect(Dialect, Protocol):
    """
    A dialect with endpoints of operation ``chat``.

    Attributes:
        client: Its other half, if it has one.
    """

    client: ChatClient | None

    def parse_request(self, body: bytes, request_id: str) -> ChatRequest:
        """
        Read a request.

        Raises:
            InvalidRequest: Names the field at fault, e.g. ``messages[2].content``.
        """
        ...

    def encoder(self, request: ChatRequest, created: int) -> ReplyEncoder:
        """Return the encoder of one answer; *created* is Unix time in seconds."""
        ...

    def render_stream_error(self, error: CortexError, request_id: str = "") -> bytes:
        """Return the event that ends a stream which broke; never a clean end."""
        ...


class CountDialect(Dialect, Protocol):
    """A dialect with endpoints of operation ``count``."""

    def parse_count(self, body: bytes, request_id: str) -> ChatRequest:
        """Read a request whose prompt is to be counted; raises as `ChatDialect.parse_request`."""
        ...

    def render_count(self, prompt_tokens: int) -> bytes: ...


class EmbeddingDialect(Dialect, Protocol):
    """A dialect with endpoints of operation ``embed``."""

    def parse_embedding(self, body: bytes, request_id: str) -> EmbeddingRequest:
        """Read a request; raises as `ChatDialect.parse_request`."""
        ...

    def render_embeddings(self, request: EmbeddingRequest, embeddings: Embeddings) -> bytes: ...


class ModelsDialect(Dialect, Protocol):
    """A dialect with endpoints of operation ``list_models``, ``list_loaded`` or ``get_model``."""

    def render_models(
        self, cards: Sequence[ModelCard], created: int, query: Mapping[str, str]
    ) -> bytes:
        """
        Render the catalogue.

        Args:
            cards: All there is to list.
            created: Unix time in seconds.
            query: The parameters of the request's query string, such as a page's bounds.
        """
        ...

    def render_loaded(self, cards: Sequence[ModelCard], created: int) -> bytes:
        """Render the models that can answer at once."""
        ...

    def render_model(self, card: ModelCard, created: int) -> bytes: ...
    def parse_model(self, body: bytes) -> str:
        """Return the model a ``POST`` of operation ``get_model`` asks for."""
        ...


class VersionDialect(Dialect, Protocol):
    """A dialect with endpoints of operation ``version``."""

    def render_version(self, version: str) -> bytes:
        """Answer what a client asks before it begins; *version* is that of cortex."""
        ...


class ReplyDialect(ChatDialect, Protocol):
    """
    A dialect whose answers are kept by the server, and gone on from by their id.

    Its endpoints have the operations ``get_reply``, ``delete_reply``, ``cancel_reply`` and
    ``list_inputs`` besides, with the id as ``{id}`` in their path.
    A *record* is what is kept of one answer: its request and itself, as bytes the dialect chooses.
    """

    def ties(self, body: bytes) -> Ties:
        """Look, and no further, for what ties a request to kept answers."""
        ...

    def join(self, body: bytes, records: Mapping[str, bytes]) -> bytes:
        """
        Return a request with all it needs of *records* in it.

        Args:
            body: As the client sent it.
            records: Those there are of its `Ties.replies`, by id.

        Raises:
            PreviousReplyNotFound: One is missing.
        """
        ...

    def record(self, body: bytes, reply: bytes) -> tuple[str, bytes] | None:
        """
        Return an answer's id and record; None if it is not to be kept.

        Args:
            body: The request, joined.
            reply: The whole answer, a JSON body or a stream.
        """
        ...

    def render_reply(self, record: bytes, query: Mapping[str, str]) -> bytes: ...
    def render_deleted(self, reply_id: str) -> bytes: ...
    def render_inputs(self, record: bytes, query: Mapping[str, str]) -> bytes: ...
