"""Norms queries and keys, turns them, and writes keys and values to the cache, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.neuron.engine.cache import Pages
from cortex.neuron.engine.kernels.fused.overlap import LAUNCH, let_next_begin, wait_for_last
from cortex.neuron.engine.layers import Norm
from cortex.neuron.engine.step import Step


@triton.jit
def rotate_kernel(
    projected, query_norm, key_norm, cosines, sines, slots, keys, values, out,
    stride, eps, shift, apart,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    TURNED: tl.constexpr, PAD: tl.constexpr, IS_NORMED: tl.constexpr,
):  # fmt: skip
    """
    Do one head of one token: queries' heads come first, then keys', then values'.

    A query is *apart* from the next, which are WIDTH or more.
    """
    let_next_begin()
    wait_for_last()
    token, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, PAD)
    row = projected + token * stride
    start = tl.minimum(head, HEADS) * apart + tl.maximum(head - HEADS, 0) * WIDTH
    slot = tl.load(slots + token)
    if head >= HEADS + KV_HEADS:
        number = head - HEADS - KV_HEADS
        is_in = at < VALUE_WIDTH
        start = HEADS * apart + KV_HEADS * WIDTH + number * VALUE_WIDTH
        value = tl.load(row + start + at, mask=is_in)
        tl.store(values + (slot * KV_HEADS + number) * VALUE_WIDTH + at, value, mask=is_in)
    else:
        half: tl.constexpr = TURNED // 2
        is_in = at < WIDTH
        other = tl.where(at < half, at + half, tl.where(at < TURNED, at - half, at))
        x = tl.load(row + start + at, mask=is_in, other=0.0).to(tl.float32)
        y = tl.load(row + start + other, mask=is_in, other=0.0).to(tl.float32)
        is_query = head < HEADS
        if IS_NORMED:
            root = 1.0 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps)
            is_own = at < tl.where(is_query, WIDTH, 0)
            is_key = at < tl.where(is_query, 0, WIDTH)
            own = tl.load(query_norm + at, mask=is_own, other=0.0).to(tl.float32)
            own += tl.load(key_norm + at, mask=is_key, other=0.0).to(tl.float32)
            others = tl.load(query_norm + other, mask=is_own, other=0.0).to(tl.float32)
            others += tl.load(key_norm + other, mask=is_key, other=0.0).to(tl.float32)
            x *= root * (own + shift)
            y *= root * (others + shift)
        is_turned = at < TURNED
        angle = token * half + at % half
        cos = tl.load(cosines + angle, mask=is_turned, other=1.0)
        sin = tl.load(sines + angle, mask=is_turned, other=0.0)
        turned = x * cos + tl.where(at < half, -y, y) * sin
        if is_query:
            to = out + (token * HEADS + head) * WIDTH + at
            tl.store(to, turned.to(out.dtype.element_ty), mask=is_in)
        else:
            to = keys + (slot * KV_HEADS + head - HEADS) * WIDTH + at
            tl.store(to, turned.to(keys.dtype.element_ty), mask=is_in)


def rotate(
    projected: torch.Tensor,
    turns: torch.Tensor,
    norms: tuple[Norm, Norm] | None,
    pages: Pages,
    step: Step,
) -> torch.Tensor:
    kept = pages.heads
    tokens, width = projected.shape
    heads = kept.queries
    apart = (width - kept.count * (kept.key + kept.value)) // heads
    out = projected.new_empty(tokens, heads, kept.key)
    query_norm, key_norm = norms or (None, None)
    rotate_kernel[tokens, heads + 2 * kept.count](
        projected,
        projected if query_norm is None else query_norm.weight,
        projected if key_norm is None else key_norm.weight,
        turns[0], turns[1], step.slots, pages.keys, pages.values, out,
        projected.stride(0),
        0.0 if query_norm is None else query_norm.eps,
        0.0 if query_norm is None else query_norm.shift,
        apart,
        HEADS=heads, KV_HEADS=kept.count, WIDTH=kept.key, VALUE_WIDTH=kept.value,
        TURNED=2 * turns.shape[2],
        PAD=triton.next_power_of_2(max(kept.key, kept.value)),
        IS_NORMED=norms is not None,
        num_warps=1, **LAUNCH,
    )  # fmt: skip
    return out
