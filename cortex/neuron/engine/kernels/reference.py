"""Every operation in plain torch: what a CPU runs, and what the kernels of a GPU have to equal."""

from __future__ import annotations

import torch
from torch.nn import functional

from cortex.neuron.engine import sampler
from cortex.neuron.engine.blocks import BLOCK_TOKENS, blocks_for
from cortex.neuron.engine.cache import Heads, Pages
from cortex.neuron.engine.layers import Delta, Linear, Norm
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.states import State
from cortex.neuron.engine.step import Step

FEW = 256  # tokens
PIECE = 64  # tokens of a prompt that go through the delta rule together


def advance(rows: Rows, which: torch.Tensor) -> tuple[torch.Tensor, ...]:
    positions = rows.lengths[which]
    ends = positions + 1
    rows.lengths[which] = ends * (which > 0)
    return rows.last[which], positions, rows.slots(which, positions), ends


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
    projected = _ungated(projected, kept)
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


def delta(projected: torch.Tensor, layer: Delta, state: State, step: Step) -> torch.Tensor:
    parts = []
    for start, end in step.waves:
        parts.append(_delta_decode(projected[start:end], layer, state, step.rows[start:end]))
    if step.decodes < len(projected):
        parts.append(delta_chunks(projected[step.decodes :], layer, state, step))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def pick(logits: torch.Tensor, rows: Rows, which: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return sampler.pick(logits, rows, which, ends)


def best(
    logits: torch.Tensor, rows: Rows, which: torch.Tensor, ends: torch.Tensor, first: int
) -> torch.Tensor:
    return sampler.best(logits, rows, which, ends, first)


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return what *weight* makes of *x*: [tokens, out]."""
    if x.dtype == torch.float32 and 1 < len(x) <= FEW and x.device.type == "cpu":
        return torch.mm(weight.to(x.dtype), x.T).T  # two times as fast as the other way round
    return functional.linear(x, weight.to(x.dtype))


def _ungated(projected: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Leave out what stands behind each query, if there is anything."""
    rest = heads.count * (heads.key + heads.value)
    width = (projected.shape[1] - rest) // heads.queries
    if width == heads.key:
        return projected
    queries = torch.unflatten(projected[:, :-rest], 1, (heads.queries, width))[:, :, : heads.key]
    return torch.cat([queries.flatten(1), projected[:, -rest:]], 1)


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


def _delta_decode(
    projected: torch.Tensor, layer: Delta, state: State, rows: torch.Tensor
) -> torch.Tensor:
    """Take one token of each sequence that decodes into its state."""
    inputs, gates, amounts, times = layer.parts(projected)
    window = torch.cat([state.inputs[rows], inputs[:, None]], 1)
    state.inputs[rows] = window[:, 1:]
    queries, keys, values = _mixed((window * layer.taps).sum(1), layer)
    memory = state.memory[rows] * _decays(times, layer).exp()[..., None, None]
    off = values - (keys[..., None, :] @ memory)[..., 0, :]
    memory += keys[..., None] * (off * amounts.float().sigmoid()[..., None])[..., None, :]
    state.memory[rows] = memory
    return _gated((queries[..., None, :] @ memory)[..., 0, :], gates, layer)


def delta_chunks(projected: torch.Tensor, layer: Delta, state: State, step: Step) -> torch.Tensor:
    """Take what does not decode, [tokens, out], into the states of its sequences."""
    inputs, gates, amounts, times = layer.parts(projected)
    amounts, decays = amounts.float().sigmoid(), _decays(times, layer)
    out = amounts.new_empty(len(projected), layer.shape.value_heads, layer.shape.value)
    start = 0
    for number in range(step.decodes, len(step.counts)):
        count = step.counts[number]
        end, row = start + count, step.rows[number : number + 1]
        window = torch.cat([state.inputs[row][0], inputs[start:end]])
        state.inputs[row] = window[None, count:]
        mixed = sum(window[n : n + count] * tap for n, tap in enumerate(layer.taps))
        told = [x.transpose(0, 1) for x in _mixed(mixed, layer)]
        told += [amounts[start:end].T, decays[start:end].T]
        answer, memory = delta_rule(*told, memory=state.memory[row][0])
        state.memory[row] = memory[None]
        out[start:end] = answer.transpose(0, 1)
        start = end
    return _gated(out, gates, layer)


def delta_rule(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    amounts: torch.Tensor,
    decays: torch.Tensor,
    *,
    memory: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Take the tokens of one sequence into a memory, `PIECE` of them at a time.

    Token i writes u_i = b_i (v_i - k_i M) under its key, where M is the memory it finds: that of
    before the piece, faded, and what those before it in the piece wrote.  So within a piece
    (1 + L) U = b (V - K M) with a lower triangle L, which is solved for V and K at once; only M
    goes from piece to piece.

    Args:
        queries: # [heads, tokens, key] float32
        keys: Of length one.  # [heads, tokens, key] float32
        values: # [heads, tokens, value] float32
        amounts: The b.  # [heads, tokens] float32
        decays: By how much the memory fades before each, as logarithms.  # [heads, tokens] float32
        memory: # [heads, key, value] float32

    Returns:
        What queries find, [heads, tokens, value], and the memory afterwards.
    """
    tokens = keys.shape[1]
    size = min(PIECE, tokens)
    lacking = -tokens % size
    queries, keys, values = (
        torch.unflatten(functional.pad(x, (0, 0, 0, lacking)), 1, (-1, size))
        for x in (queries, keys, values)
    )
    amounts, decays = (
        torch.unflatten(functional.pad(x, (0, lacking)), 1, (-1, size)) for x in (amounts, decays)
    )
    since = decays.cumsum(-1)[..., None]  # [heads, pieces, size, 1]
    above = torch.ones(size, size, dtype=torch.bool, device=keys.device).triu(1)
    between = (since - since.transpose(-1, -2)).masked_fill(above, -torch.inf).exp()
    ends = since[:, :, -1:]
    written = keys * amounts[..., None]
    lower = written @ keys.transpose(-1, -2) * between
    known = torch.cat([values * amounts[..., None], written * since.exp()], -1)
    solved = torch.linalg.solve_triangular(lower, known, upper=False, unitriangular=True)
    writes, overwrites = torch.split(solved, [values.shape[-1], keys.shape[-1]], -1)
    near = queries @ keys.transpose(-1, -2) * between
    far, later = queries * since.exp(), (keys * (ends - since).exp()).transpose(-1, -2)
    fades = ends.exp()
    out = []
    for piece in range(keys.shape[1]):
        wrote = writes[:, piece] - overwrites[:, piece] @ memory
        out.append(far[:, piece] @ memory + near[:, piece] @ wrote)
        memory = memory * fades[:, piece] + later[:, piece] @ wrote
    return torch.cat(out, 1)[:, :tokens], memory


def _mixed(mixed: torch.Tensor, layer: Delta) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values of what the convolution gave: [tokens, heads, width]."""
    shape = layer.shape
    width = shape.key_heads * shape.key
    parts = torch.split(functional.silu(mixed), [width, width, mixed.shape[1] - 2 * width], -1)
    queries, keys, values = (
        torch.unflatten(part, -1, (-1, size))
        for part, size in zip(parts, (shape.key, shape.key, shape.value), strict=True)
    )
    group = shape.value_heads // shape.key_heads
    queries, keys = (
        (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).repeat_interleave(group, 1)
        for x in (queries, keys)
    )
    return queries * shape.key**-0.5, keys, values


def _decays(times: torch.Tensor, layer: Delta) -> torch.Tensor:
    return layer.decay * functional.softplus(times.float() + layer.delay.float())


def _gated(x: torch.Tensor, gates: torch.Tensor, layer: Delta) -> torch.Tensor:
    """Norm what was found, [tokens, heads, value] float32, and gate it: [tokens, width]."""
    of = layer.after
    normed = functional.rms_norm(x, of.weight.shape, of.weight.float(), of.eps)
    return (normed.flatten(1) * functional.silu(gates.float())).to(gates.dtype)
