"""What decides on the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cortex.chat.request import RequestHead
from cortex.fleet.model import Candidate, LoadedModel, ModelSpec


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
