"""Unload what was used longest ago."""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import EvictionPolicy, Register
from cortex.fleet.model import LoadedModel, ModelSpec


class LeastRecentlyUsed:
    """Oldest first, just enough."""

    def victims(
        self,
        need_bytes: int,
        incoming: ModelSpec,  # noqa: ARG002
        loaded: Sequence[LoadedModel],
        now: float,  # noqa: ARG002
    ) -> Sequence[LoadedModel]:
        return oldest_first(need_bytes, loaded)


def oldest_first(need_bytes: int, loaded: Sequence[LoadedModel]) -> Sequence[LoadedModel]:
    """Return the longest unused that together free *need_bytes*; nothing if all cannot."""
    gone: list[LoadedModel] = []
    spare = -need_bytes
    for model in sorted(loaded, key=lambda m: m.last_used):
        if spare >= 0:
            break
        gone.append(model)
        spare += model.used_bytes
    for model in reversed(gone[:-1]):  # the last one is needed; one before it may not be
        if model.used_bytes <= spare:
            gone.remove(model)
            spare -= model.used_bytes
    return gone if spare >= 0 else []


@hookimpl
def cortex_register_eviction_policies(register: Register[EvictionPolicy]) -> None:
    register("lru", LeastRecentlyUsed, summary="unload what was used longest ago")
