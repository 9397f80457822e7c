"""What runs models on a node, and where their weights come from."""

from __future__ import annotations

from asyncio import Task
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from cortex.chat.events import ChatEvent
from cortex.chat.request import ChatRequest, EmbeddingRequest, Embeddings
from cortex.fleet.model import Checkpoint, ModelSpec, ModelStats, Progress, RunningModel
from cortex.fleet.node import Device, DeviceState

Report = Callable[[Progress], None]
Count = Callable[[ChatRequest], Awaitable[int]]


class Source(Protocol):
    """A place weights come from."""

    def knows(self, model_id: str) -> bool:
        """Tell, without I/O beyond a look at the disk, whether an id without a source is ours."""
        ...

    def fetch(self, spec: ModelSpec, report: Report, *, text_only: bool = False) -> Checkpoint:
        """
        Bring the weights of *spec* to this host's disk, or find them there.

        Blocks; runs in a thread of its own.  *report* may raise to cancel: let that through.
        With *text_only*, what tokenizer and chat template are read from is enough.
        Once that is here, and weights have yet to come, a `Progress` may have it as `text`: the
        harness looks at it, and *report* raises why the model cannot be run.

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
        Answer one request for one answer (`ChatRequest.choices`), concurrently with others.

        `ChatRequest.model` is the id it was loaded as.  Closing the generator stops the generation.
        What goes wrong before `Started` is raised, after it it is a `Failed` event.
        """
        ...

    async def count(self, request: ChatRequest) -> int:
        """Return the tokens of a request's prompt, exactly as `generate` would feed them."""
        ...

    async def counter(self, spec: ModelSpec, checkpoint: Checkpoint | None) -> Count:
        """Return what `count` would be for a model that is not loaded; weights may be missing."""
        ...

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """
        Embed some inputs.

        Raises:
            OperationUnsupported: The model makes no embeddings.
        """
        ...

    def stats(self, model_id: str) -> ModelStats: ...
    async def aclose(self) -> None: ...


@runtime_checkable
class CheckingHarness(Harness, Protocol):
    """A harness that can tell before the weights are fetched that it cannot run a model."""

    async def check(self, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        """
        Look at all of a checkpoint but its weights, which are fetched if this returns.

        Without it, or from a source that does not bring the text side first, `load` says so.

        Raises:
            UnsupportedArchitecture: It cannot run this kind of model, or not over so many devices.
        """
        ...


@runtime_checkable
class SplittingHarness(Harness, Protocol):
    """A harness that can run a model on several devices at once."""

    async def split(
        self,
        spec: ModelSpec,
        checkpoint: Checkpoint | None,
        devices: Sequence[int],
        report: Report,
    ) -> RunningModel:
        """
        Do as `load` over *devices*, of which each gets a share of the model.

        Without it, a model that is to be split is refused.

        Raises:
            UnsupportedArchitecture: The model cannot be split over so many.
            DeviceBusy: A device is in use together with others.
        """
        ...


@runtime_checkable
class SpreadingHarness(Harness, Protocol):
    """A harness that can spread a model over several hosts, of which this is one."""

    def local_bytes(self, spec: ModelSpec, checkpoint: Checkpoint | None) -> int:
        """Return the memory a model needs here; without it, that is the model's size."""
        ...


@runtime_checkable
class RestartableHarness(Harness, Protocol):
    """A harness that runs each device in a process of its own."""

    async def restart(self, device: int) -> None:
        """
        Put a new process in place of that of *device*, and return once it is ready.

        A load that comes meanwhile waits for the new one.  Does nothing if there is none.

        Raises:
            DeviceBusy: It has models.
            DeviceUnavailable: The new one does not start.
        """
        ...
