"""Keys and values of one model, in blocks; where and how its layers attend to them; and states."""

from __future__ import annotations

import attrs
import torch

from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.states import Recurrence, States

TILE_ROWS = 128  # of a tile: tokens times the heads that share keys


@attrs.frozen(kw_only=True, eq=False)
class Heads:
    """
    How one layer attends, and what it keeps of a token for that.

    Attributes:
        queries: Heads of queries.
        count: Heads of keys and values.
        key: Width of a key.
        value: Width of a value.
        scale: Of the scores.
        window: Keys a query sees, its own included; None is all before it.
        softcap: Scores are squeezed into this much either way; None leaves them.
        sinks: A score of each query head's that takes its share, and gives nothing.  # [heads]
    """

    queries: int
    count: int
    key: int
    value: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def elements(self) -> int:
        """Numbers a token takes in this layer."""
        return self.count * (self.key + self.value)


@attrs.frozen(kw_only=True, eq=False)
class Pages:
    """
    What one layer has in the cache.

    Attributes:
        keys: # [blocks, BLOCK_TOKENS, kv_heads, width]
        values: # [blocks, BLOCK_TOKENS, kv_heads, value_width]
    """

    heads: Heads
    keys: torch.Tensor
    values: torch.Tensor

    def write(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write keys and values of tokens, [tokens, heads, width], where `Step.slots` says."""
        self.keys.flatten(0, 1).index_copy_(0, slots, keys)
        self.values.flatten(0, 1).index_copy_(0, slots, values)


class Cache:
    """
    All of it.

    Attributes:
        pages: By layer.
        states: Of layers of linear attention.
        tile_tokens: How many tokens of a prompt are to attend together.
    """

    def __init__(
        self,
        layers: dict[int, Heads],
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        recurrent: dict[int, Recurrence] | None = None,
        slots: int = 0,
    ) -> None:
        def room(heads: Heads, width: int) -> torch.Tensor:
            shape = (blocks, BLOCK_TOKENS, heads.count, width)
            return torch.zeros(shape, dtype=dtype, device=device)

        self.pages = {
            layer: Pages(
                heads=heads,
                keys=room(heads, heads.key),
                values=room(heads, heads.value),
            )
            for layer, heads in layers.items()
        }
        groups = max((heads.queries // heads.count for heads in layers.values()), default=1)
        self.tile_tokens = max(TILE_ROWS // groups, 1)
        self.states = States(recurrent or {}, slots, dtype, device)

    @property
    def used_bytes(self) -> int:
        kept = sum(pages.keys.nbytes + pages.values.nbytes for pages in self.pages.values())
        return kept + self.states.used_bytes
