"""
Unload what is cheapest to have again: by what its reload takes, how often it is asked, its size.

After GreedyDual-Size-Frequency (Cherkasova, 1998), which keeps what has the most cost times
frequency for its size.  Its ageing term is not needed here: `LoadedModel.heat` fades by itself, and
so a policy that is asked "what if" has nothing to remember.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex import hookimpl
from cortex.api import EvictionPolicy, Register
from cortex.fleet.model import LoadedModel, ModelSpec

GIB = 1 << 30
UNKNOWN_S_PER_GIB = 1.0  # what a reload takes while nobody has measured it
UNKNOWN_S = 5.0


class Cost:
    """Least worth for its size first, just enough."""

    def victims(
        self,
        need_bytes: int,
        incoming: ModelSpec,  # noqa: ARG002
        loaded: Sequence[LoadedModel],
        now: float,  # noqa: ARG002
    ) -> Sequence[LoadedModel]:
        gone: list[LoadedModel] = []
        spare = -need_bytes
        for model in sorted(loaded, key=lambda m: (worth(m), m.last_used)):
            if spare >= 0:
                break
            gone.append(model)
            spare += model.used_bytes
        for model in sorted(gone, key=worth, reverse=True):  # the dearest that are not needed stay
            if model.used_bytes <= spare:
                gone.remove(model)
                spare -= model.used_bytes
        return gone if spare >= 0 else []


def worth(model: LoadedModel) -> float:
    """Return the seconds of loading a GiB of *model*'s memory saves, by how it is asked lately."""
    gib = max(model.used_bytes, 1) / GIB
    return (model.load_s or UNKNOWN_S + UNKNOWN_S_PER_GIB * gib) * model.heat / gib


@hookimpl
def cortex_register_eviction_policies(register: Register[EvictionPolicy]) -> None:
    register("cost", Cost, summary="unload what is cheapest to have again")
