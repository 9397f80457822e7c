"""What decides on the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cortex.chat.request import RequestHead
from cortex.fleet.model import Candidate, LoadedModel, ModelSpec
from cortex.fleet.principal import Principal


class RoutingStrategy(Protocol):
    """
    Chooses a node.  Pure: no I/O, no awaiting; it may remember what it chose.

    One that goes by `RequestHead.affinity` has an attribute `reads_affinity` that is true; it is
    asked even where there is one candidate.
    """

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


class Authenticator(Protocol):
    """Says who asks.  Asked for each request, so it does no I/O and takes microseconds."""

    def identify(self, key: str, headers: Mapping[str, str]) -> Principal | None:
        """
        Return who it is; None to leave that to the next one.

        Args:
            key: What the request has as a bearer or as ``x-api-key``, or an empty string.
            headers: All it has.

        Raises:
            NotAuthenticated: It is somebody of ours, and shall not come in.
        """
        ...
