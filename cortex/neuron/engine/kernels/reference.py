"""Every operation in plain torch: what a CPU runs, and what the kernels of a GPU have to equal."""

from __future__ import annotations

import torch
from torch.nn import functional

from cortex.neuron.engine import sampler
from cortex.neuron.engine.blocks import BLOCK_TOKENS, blocks_for
from cortex.neuron.engine.cache import Heads, Pages
from cortex.neuron.engine.layers import Linear, Norm
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.step import Step

FEW = 256  # tokens


def norm(x: torch.Tensor, of: Norm) -> torch.Tensor:
    weight = of.weight + of.shift if of.shift else of.weight
    return functional.rms_norm(x, weight.shape, weight, of.eps)


def linear(x: torch.Tensor, layer: Linear, before: Norm | None = None) -> torch.Tensor:
    if before is not None:
        x = norm(x, before)
    out = _product(x, layer.weight)
    if layer.scale is not None:
        out = out * layer.scale.to(x.dtype)
    return out if layer.bias is None else out + layer.bias


def gated(x: torch.Tensor, layer: Linear, before: Norm) -> torch.Tensor:
    gate, up = linear(x, layer, before).chunk(2, -1)
    return functional.silu(gate) * up


def add(x: torch.Tensor, layer: Linear, residual: torch.Tensor, factor: float = 1.0) -> None:
    residual.add_(linear(x, layer), alpha=factor)


def rotate(
    projected: torch.Tensor,
    turns: torch.Tensor,
    norms: tuple[Norm, Norm] | None,
    pages: Pages,
    step: Step,
) -> torch.Tensor:
    kept = pages.heads
    width = kept.count * kept.value
    turning, values = torch.split(projected, [projected.shape[1] - width, width], -1)
    turning = torch.unflatten(turning, -1, (-1, kept.key))
    queries = turning.shape[1] - kept.count
    if norms is not None:
        parts = torch.split(turning, [queries, kept.count], 1)
        turning = torch.cat([norm(part, of) for part, of in zip(parts, norms, strict=True)], 1)
    cos, sin = turns.to(projected.dtype)[:, :, None]
    turned = _turned(turning, cos, sin)
    values = torch.unflatten(values, -1, (kept.count, kept.value))
    pages.write(step.slots, turned[:, queries:], values)
    return turned[:, :queries]


def attend(queries: torch.Tensor, pages: Pages, step: Step) -> torch.Tensor:
    parts = []
    if step.decodes:
        parts.append(_decode(queries[: step.decodes], pages, step))
    start = step.decodes
    for number in range(step.decodes, len(step.counts)):
        end = start + step.counts[number]
        parts.append(_chunk(queries[start:end], pages, step, number))
        start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def pick(logits: torch.Tensor, rows: Rows, which: torch.Tensor) -> torch.Tensor:
    return sampler.pick(logits, rows, which)


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return what *weight* makes of *x*: [tokens, out]."""
    if x.dtype == torch.float32 and 1 < len(x) <= FEW and x.device.type == "cpu":
        return torch.mm(weight.to(x.dtype), x.T).T  # two times as fast as the other way round
    return functional.linear(x, weight.to(x.dtype))


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn components of heads, [tokens, heads, width], as far as there are angles."""
    half = cos.shape[-1]
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def _decode(queries: torch.Tensor, pages: Pages, step: Step) -> torch.Tensor:
    """Attend with one query a sequence, all of them at once."""
    heads = pages.heads
    if heads.window not in step.seen:
        step.seen[heads.window] = _seen(step, heads.window)
    blocks, seen = step.seen[heads.window]
    k = pages.keys.index_select(0, blocks).view(len(queries), -1, heads.count, heads.key)
    v = pages.values.index_select(0, blocks).view(len(queries), -1, heads.count, heads.value)
    k, v = k.transpose(1, 2), v.transpose(1, 2)  # [sequences, kv_heads, keys, width]
    q = torch.unflatten(queries, 1, (heads.count, -1))  # a group's as tokens: nothing repeated
    if heads.softcap or heads.sinks is not None:
        return _explicit(q[:, :, :, None], k, v, seen[:, None], heads)[..., 0, :].flatten(1, 2)
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen[:, None, None], scale=heads.scale
    )
    return out.flatten(1, 2)


def _seen(step: Step, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the blocks of what decodes, [sequences x blocks], and the keys each query sees."""
    count = step.decodes
    blocks = step.table[step.rows[:count], : blocks_for(max(step.ends[:count]))]
    places = torch.arange(blocks.shape[1] * BLOCK_TOKENS, device=blocks.device)
    ends = step.lengths[:count, None]
    seen = places < ends  # [sequences, keys]
    if window:
        seen &= places >= ends - window
    return blocks.flatten(), seen


def _chunk(queries: torch.Tensor, pages: Pages, step: Step, number: int) -> torch.Tensor:
    """Attend with the new tokens of one sequence."""
    heads = pages.heads
    count, end = step.counts[number], step.ends[number]
    first = max(end - count - heads.window + 1, 0) // BLOCK_TOKENS if heads.window else 0
    blocks = step.table[step.rows[number], first : blocks_for(end)].long()
    end -= first * BLOCK_TOKENS
    k = pages.keys[blocks].flatten(0, 1)[:end].transpose(0, 1)  # [kv_heads, keys, width]
    v = pages.values[blocks].flatten(0, 1)[:end].transpose(0, 1)
    q = queries.transpose(0, 1)
    if heads.softcap or heads.sinks is not None:
        q = torch.unflatten(q, 0, (k.shape[0], -1))
        seen = visible(count, end, heads.window, q.device)
        return (
            _explicit(q[None], k[None], v[None], seen[None], heads)[0].flatten(0, 1).transpose(0, 1)
        )
    is_whole = count == end and not heads.window
    out = functional.scaled_dot_product_attention(
        *(q[None], k[None], v[None]),
        attn_mask=None if is_whole else visible(count, end, heads.window, q.device),
        is_causal=is_whole,
        scale=heads.scale,
        enable_gqa=q.shape[0] != k.shape[0],
    )
    return out[0].transpose(0, 1)


def _explicit(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, heads: Heads
) -> torch.Tensor:
    """
    Attend by way of the scores, which have soft caps or sinks.

    Args:
        q: # [sequences, kv_heads, groups, tokens, width]
        k: # [sequences, kv_heads, keys, width]
        v: # [sequences, kv_heads, keys, value_width]
        seen: # [sequences, tokens, keys] bool
        heads: How they attend.

    Returns:
        # [sequences, kv_heads, groups, tokens, value_width]
    """
    scores = (q @ k[:, :, None].transpose(-1, -2)).float() * heads.scale
    if heads.softcap:
        scores = heads.softcap * torch.tanh(scores / heads.softcap)
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    if heads.sinks is not None:
        sinks = heads.sinks.float().view(1, k.shape[1], -1, 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], -1)
    shares = scores.softmax(-1)[..., : k.shape[2]]
    return shares.to(v.dtype) @ v[:, :, None]


def visible(count: int, end: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which of *end* keys the last *count* queries see: [count, end] bool."""
    queries = torch.arange(end - count, end, device=device)[:, None]
    places = torch.arange(end, device=device)
    seen = places <= queries
    return seen & (places > queries - window) if window else seen
