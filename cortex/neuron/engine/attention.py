"""
Attention over a paged cache, plugged into transformers' modules.

transformers hands the keyword `step` down to the attention function untouched, so one flattened
batch of decodes and chunks of prompts runs through a model's own forward.  On a CPU, and wherever
Triton is not, pages are gathered and torch's own attention does the rest.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import AttentionInterface

from cortex.neuron.engine.blocks import BLOCK_TOKENS, blocks_for
from cortex.neuron.engine.step import Step

NAME = "cortex"


@attrs.frozen(kw_only=True)
class Heads:
    """What one layer keeps of a token: heads of keys and values, and their widths."""

    count: int
    key: int
    value: int

    @property
    def elements(self) -> int:
        """Numbers a token takes in this layer."""
        return self.count * (self.key + self.value)


class Cache:
    """
    Keys and values of one model.

    Attributes:
        keys: By layer.  # [blocks, BLOCK_TOKENS, heads, width]
        values: The same.
    """

    def __init__(
        self, layers: dict[int, Heads], blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def room(heads: Heads, width: int) -> torch.Tensor:
            shape = (blocks, BLOCK_TOKENS, heads.count, width)
            return torch.zeros(shape, dtype=dtype, device=device)

        self.keys = {layer: room(heads, heads.key) for layer, heads in layers.items()}
        self.values = {layer: room(heads, heads.value) for layer, heads in layers.items()}

    @property
    def used_bytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys.values(), *self.values.values()))

    def write(self, layer: int, step: Step, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the keys and values of a step's tokens: [tokens, heads, width]."""
        self.keys[layer].flatten(0, 1).index_copy_(0, step.slots, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, step.slots, values)


@attrs.frozen(kw_only=True, eq=False)
class Pages:
    """
    Where and how one layer attends.

    Attributes:
        keys: # [blocks, BLOCK_TOKENS, kv_heads, width]
        values: # [blocks, BLOCK_TOKENS, kv_heads, value_width]
        scale: Of the scores.
        window: Keys a query sees, its own included; None is all before it.
    """

    keys: torch.Tensor
    values: torch.Tensor
    scale: float
    window: int | None = None


def attend_paged(queries: torch.Tensor, pages: Pages, step: Step) -> torch.Tensor:
    """
    Attend to what is in the cache; the step's own keys are there already.

    Args:
        queries: # [tokens, heads, width]
        pages: Of one layer.
        step: Whose tokens they are.

    Returns:
        # [tokens, heads, value_width]
    """
    parts = []
    if step.decodes:
        parts.append(_decode(queries[: step.decodes], pages, step))
    start = step.decodes
    for number in range(step.decodes, len(step.counts)):
        end = start + step.counts[number]
        parts.append(_chunk(queries[start:end], pages, step, number))
        start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _decode(queries: torch.Tensor, pages: Pages, step: Step) -> torch.Tensor:
    """Attend with one query a sequence, all of them at once."""
    count = step.decodes
    longest = max(step.ends[:count])
    blocks = step.table[:count, : blocks_for(longest)].long()
    k = pages.keys[blocks].flatten(1, 2).transpose(1, 2)  # [sequences, kv_heads, keys, width]
    v = pages.values[blocks].flatten(1, 2).transpose(1, 2)
    places = torch.arange(k.shape[2], device=k.device)
    ends = step.lengths[:count, None]
    seen = places < ends  # [sequences, keys]
    if pages.window:
        seen &= places >= ends - pages.window
    groups = queries.shape[1] // k.shape[1]
    q = queries.view(count, k.shape[1], groups, -1)  # a group's queries as tokens: nothing repeated
    out = attend(q, k, v, attn_mask=seen[:, None, None], scale=pages.scale)
    return out.flatten(1, 2)


def _chunk(queries: torch.Tensor, pages: Pages, step: Step, number: int) -> torch.Tensor:
    """Attend with the new tokens of one sequence."""
    window = pages.window
    count, end = step.counts[number], step.ends[number]
    first = max(end - count - window + 1, 0) // BLOCK_TOKENS if window else 0
    blocks = step.table[number, first : blocks_for(end)].long()
    end -= first * BLOCK_TOKENS
    k = pages.keys[blocks].flatten(0, 1)[:end].transpose(0, 1)  # [kv_heads, keys, width]
    v = pages.values[blocks].flatten(0, 1)[:end].transpose(0, 1)
    q = queries.transpose(0, 1)
    is_whole = count == end and not window
    seen = None if is_whole else visible(count, end, window, queries.device)
    out = attend(
        *(q[None], k[None], v[None]),
        attn_mask=seen,
        is_causal=is_whole,
        scale=pages.scale,
        enable_gqa=q.shape[0] != k.shape[0],
    )
    return out[0].transpose(0, 1)


def visible(count: int, end: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which of *end* keys the last *count* queries see: [count, end] bool."""
    queries = torch.arange(end - count, end, device=device)[:, None]
    places = torch.arange(end, device=device)
    seen = places <= queries
    return seen & (places > queries - window) if window else seen


def forward(  # noqa: PLR0917 - as transformers calls it
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the step tells who sees what
    scaling: float | None = None,
    *,
    step: Step,
    cache_pages: Cache,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """
    Do as transformers' attention functions do.

    Args:
        module: The attention module.
        query: # [1, heads, tokens, width]
        key: # [1, kv_heads, tokens, width]
        value: # [1, kv_heads, tokens, value_width]
        attention_mask: None.
        scaling: Of the scores; None is width ** -0.5.
        step: Handed down from `Modules`.
        cache_pages: The same.
        sliding_window: Keys a query sees; None is all.
        softcap: Not known here.
        s_aux: Not known here.

    Raises:
        NotImplementedError: The model wants what this attention does not have.
    """
    if softcap or s_aux is not None:
        raise NotImplementedError("its attention has soft caps or sinks")
    layer = module.layer_idx
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    cache_pages.write(layer, step, *rows[1:])
    pages = Pages(
        keys=cache_pages.keys[layer],
        values=cache_pages.values[layer],
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        window=sliding_window,
    )
    return attend_paged(rows[0], pages, step)[None], None


AttentionInterface.register(NAME, forward)
