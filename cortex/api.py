"""The protocols a plugin implements.  Stable: changing one is a breaking change."""

from __future__ import annotations

from asyncio import Task
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Literal, Protocol, TypeVar

import attrs

from cortex.chat.events import ChatEvent
from cortex.chat.request import ChatRequest, RequestHead
from cortex.errors import CortexError
from cortex.fleet.model import (
    Candidate,
    Checkpoint,
    LoadedModel,
    ModelCard,
    ModelSpec,
    ModelStats,
    Progress,
    RunningModel,
)
from cortex.fleet.node import Device, DeviceState

T_contra = TypeVar("T_contra", contravariant=True)

Operation = Literal["chat", "list_models", "get_model"]
Report = Callable[[Progress], None]


@attrs.frozen
class Endpoint:
    """A path of a dialect's HTTP surface, in aiohttp's syntax."""

    method: Literal["GET", "POST"]
    path: str
    operation: Operation


class ReplyEncoder(Protocol):
    """
    Turns the events of one answer into the bytes of one HTTP body.

    Not streaming, `feed` returns nothing until the last event and then everything.  `Failed`
    becomes the dialect's error event in a stream; of a whole body it never gets to see one.
    """

    content_type: str

    def feed(self, event: ChatEvent) -> bytes: ...
    def keep_alive(self) -> bytes:
        """Return bytes that tell a waiting client we are alive, or nothing."""
        ...


class Dialect(Protocol):
    """An API dialect.  Sans-IO: bytes in, values out, and back."""

    endpoints: Sequence[Endpoint]

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

    def render_models(self, cards: Sequence[ModelCard], created: int) -> bytes: ...
    def render_model(self, card: ModelCard, created: int) -> bytes: ...
    def render_error(self, error: CortexError) -> tuple[int, bytes]:
        """Return status and body."""
        ...

    def render_stream_error(self, error: CortexError) -> bytes:
        """Return the event that ends a stream which broke; never a clean end."""
        ...


class RoutingStrategy(Protocol):
    """Chooses a node.  Pure: no I/O, no awaiting; it may remember what it chose."""

    def choose(self, head: RequestHead, candidates: Sequence[Candidate]) -> Candidate:
        """Pick one of *candidates*: healthy, with the model loaded, never empty."""
        ...


class EvictionPolicy(Protocol):
    """Chooses what to unload.  Pure: no I/O, no clock of its own."""

    def victims(
        self, need_bytes: int, incoming: ModelSpec, loaded: Sequence[LoadedModel], now: float
    ) -> Sequence[LoadedModel]:
        """
        Return models of one device whose unloading frees at least *need_bytes*, or nothing.

        Args:
            need_bytes: What is missing on the device, > 0.
            incoming: The model that wants in.
            loaded: What may go: busy and pinned models are left out already.
            now: Monotonic seconds, as in `LoadedModel.last_used`.
        """
        ...


class Source(Protocol):
    """A place weights come from."""

    def knows(self, model_id: str) -> bool:
        """Tell, without I/O beyond a look at the disk, whether an id without a source is ours."""
        ...

    def fetch(self, spec: ModelSpec, report: Report) -> Checkpoint:
        """
        Bring the weights of *spec* to this host's disk, or find them there.

        Blocks; runs in a thread of its own.  *report* may raise to cancel: let that through.

        Raises:
            RepoFetchFailed: With the cause in words a user can act on.
        """
        ...


class HarnessHost(Protocol):
    """
    What a harness may ask of the neuron and tell it.  Event loop only.

    Attributes:
        devices: The devices of this node as they were at start.
    """

    devices: Sequence[Device]

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> Task[None]:
        """Run *work* in the background until it ends or the neuron does; it must not raise."""
        ...

    def device_changed(self, index: int, state: DeviceState) -> None: ...
    def model_changed(
        self,
        model_id: str,
        status: Literal["loaded", "recovering", "failed"],
        error: str | None = None,
    ) -> None: ...


class Harness(Protocol):
    """
    Runs models on one node.  Its module imports without its engine.

    Attributes:
        needs_weights: Whether `load` wants a checkpoint.
    """

    needs_weights: bool

    async def load(
        self, spec: ModelSpec, checkpoint: Checkpoint | None, device: int, report: Report
    ) -> RunningModel: ...
    async def unload(self, model_id: str) -> None: ...
    def generate(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """
        Answer one request, concurrently with others.

        Closing the generator stops the generation.  What goes wrong before `Started` is raised,
        after it it is a `Failed` event.
        """
        ...

    def stats(self, model_id: str) -> ModelStats: ...
    async def aclose(self) -> None: ...


class Register(Protocol[T_contra]):
    """Collects named factories during one ``cortex_register_*`` call."""

    def __call__(
        self,
        name: str,
        factory: Callable[..., T_contra],
        *,
        options: type[Any] | None = None,
        summary: str = "",
    ) -> None:
        """
        Offer *factory* under *name*.

        Args:
            name: Lower-case kebab, unique among offers of its kind.
            factory: Called with the options as its first argument, if *options* is given.
            options: An attrs class; the offer's table of the configuration is read into it.
            summary: One line for ``cortex plugins``.

        Raises:
            PluginError: The name is taken or malformed.
        """
        ...
