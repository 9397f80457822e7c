"""Unload what ranks no higher than the model that wants in, longest unused first."""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import EvictionPolicy, Register
from cortex.eviction.lru import oldest_first
from cortex.fleet.model import LoadedModel, ModelSpec


class ByPriority:
    """Equal ranks displace each other both ways; a higher one is never displaced by a lower."""

    def victims(
        self,
        need_bytes: int,
        incoming: ModelSpec,
        loaded: Sequence[LoadedModel],
        now: float,  # noqa: ARG002
    ) -> Sequence[LoadedModel]:
        return oldest_first(need_bytes, [m for m in loaded if m.priority <= incoming.priority])


@hookimpl
def cortex_register_eviction_policies(register: Register[EvictionPolicy]) -> None:
    register("priority", ByPriority, summary="unload equal or lower priority, longest unused first")
