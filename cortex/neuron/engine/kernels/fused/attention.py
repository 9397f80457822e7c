"""
Attention over pages, for decodes and for tiles of prompts.

Keys of a sequence that decodes are split among programs, since one sequence alone would leave most
of a GPU idle; their parts are put together afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.cache import Pages
from cortex.neuron.engine.kernels.fused.overlap import LAUNCH, let_next_begin, wait_for_last
from cortex.neuron.engine.step import Step

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # a score below all; minus infinity less itself is no number
PROGRAMS = 512  # that decode at once, if there are so few sequences
MOST_SPLITS = 64
MANY = 32  # splits, that have few keys each
WIDE = 128  # heads wider than that take fewer keys at a time


@triton.jit
def scored(
    q, k, seen, scale, softcap, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Return the scores of queries and keys as powers of two: [rows, keys]."""
    scores = tl.dot(q, k, input_precision="ieee") * scale
    if HAS_SOFTCAP:  # by way of exp: tanh is not everywhere
        scores = softcap * (2.0 / (1.0 + tl.exp(-2.0 * scores / softcap)) - 1.0)
    return tl.where(seen, scores * LOG2_E, LOWEST)


@triton.jit
def tile_of(owners, lengths, tiles, number, IS_TILED: tl.constexpr):
    """Return a tile's row of the table, its first token, how many it has, and keys they see."""
    if IS_TILED:
        tile = tiles + number * 4
        return tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    owner = tl.load(owners + number)
    return (
        owner,
        number.to(tl.int64),
        tl.full([], 1, tl.int64),
        tl.load(lengths + number),
    )


@triton.jit
def span(end, count, split, KEYS: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr):
    """Return the first key of a split that a tile may see, and the end of its keys."""
    share = tl.cdiv(tl.cdiv(end, SPLITS), KEYS) * KEYS
    low = split * share
    high = tl.minimum(low + share, end)
    if WINDOW > 0:
        low = tl.maximum(low, tl.maximum(end - count - WINDOW + 1, 0) // KEYS * KEYS)
    return low, high


@triton.jit
def keep(
    out, sums, sinks, part, head, is_row, most, total, sofar, VALUE_WIDTH: tl.constexpr,
    PAD_VALUE_WIDTH: tl.constexpr, SPLITS: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Write what rows found: the answer, or their part of it."""
    value_wide = tl.arange(0, PAD_VALUE_WIDTH)
    if SPLITS == 1:
        if HAS_SINKS:
            total += tl.exp2(tl.load(sinks + head).to(tl.float32) * LOG2_E - most)
        sofar = sofar / tl.where(total > 0, total, 1.0)[:, None]
    else:
        tl.store(sums + part * 2, most, mask=is_row)
        tl.store(sums + part * 2 + 1, total, mask=is_row)
    to = part[:, None] * VALUE_WIDTH + value_wide[None, :]
    is_out = is_row[:, None] & (value_wide < VALUE_WIDTH)[None, :]
    tl.store(out + to, sofar.to(out.dtype.element_ty), mask=is_out)


@triton.jit(do_not_specialize_on_alignment=["owners", "lengths", "tiles"])
def attend_kernel(
    queries, keys, values, out, table, owners, lengths, tiles, sinks, sums,
    scale, softcap, query_stride, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    PAD_WIDTH: tl.constexpr, PAD_VALUE_WIDTH: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr,
    IS_TILED: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """
    Attend with the queries of one sequence or tile, of the heads that share keys, to one split.

    A row is a token and a head of the group: row r is token r // group of the tile.
    """
    let_next_begin()
    wait_for_last()
    GROUP: tl.constexpr = HEADS // KV_HEADS
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    owner, first, count, end = tile_of(owners, lengths, tiles, tile, IS_TILED)
    row = tl.arange(0, ROWS)
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    wide, value_wide = tl.arange(0, PAD_WIDTH), tl.arange(0, PAD_VALUE_WIDTH)
    q_at = (first + token)[:, None] * query_stride + head[:, None] * WIDTH + wide[None, :]
    q_in = (token < count)[:, None] & (wide < WIDTH)[None, :]
    q = tl.load(queries + q_at, mask=q_in, other=0.0)
    place = end - count + token  # of each row's token in its sequence
    low, high = span(end, count, split, KEYS, SPLITS, WINDOW)
    most = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sofar = tl.zeros([ROWS, PAD_VALUE_WIDTH], tl.float32)
    for start in range(low, high, KEYS):
        at = start + tl.arange(0, KEYS)
        is_key = at < high
        page = tl.load(table + owner * table_stride + at // PAGE, mask=is_key, other=0)
        slot = (page.to(tl.int64) * PAGE + at % PAGE) * KV_HEADS + kv_head
        k_in = (wide < WIDTH)[:, None] & is_key[None, :]
        k = tl.load(keys + slot[None, :] * WIDTH + wide[:, None], mask=k_in, other=0.0)
        seen = is_key[None, :] & (at[None, :] <= place[:, None])
        if WINDOW > 0:
            seen = seen & (at[None, :] > place[:, None] - WINDOW)
        scores = scored(q, k, seen, scale, softcap, HAS_SOFTCAP)
        now_most = tl.maximum(most, tl.max(scores, 1))
        shares = tl.where(seen, tl.exp2(scores - now_most[:, None]), 0.0)
        fade = tl.exp2(most - now_most)
        total = total * fade + tl.sum(shares, 1)
        v_at = slot[:, None] * VALUE_WIDTH + value_wide[None, :]
        v_in = is_key[:, None] & (value_wide < VALUE_WIDTH)[None, :]
        v = tl.load(values + v_at, mask=v_in, other=0.0)
        sofar = sofar * fade[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        most = now_most
    part = ((first + token) * HEADS + head) * SPLITS + split
    keep(
        out, sums, sinks, part, head, token < count, most, total, sofar,
        VALUE_WIDTH, PAD_VALUE_WIDTH, SPLITS, HAS_SINKS,
    )  # fmt: skip


@triton.jit
def combine_kernel(
    parts, sums, sinks, out, HEADS: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    PAD_VALUE_WIDTH: tl.constexpr, SPLITS: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Put together what the splits of one head of one sequence found."""
    let_next_begin()
    wait_for_last()
    number = tl.program_id(0)
    split, wide = tl.arange(0, SPLITS), tl.arange(0, PAD_VALUE_WIDTH)
    at = number * SPLITS + split
    most = tl.load(sums + at * 2)
    total = tl.load(sums + at * 2 + 1)
    is_out = wide < VALUE_WIDTH
    part = tl.load(
        parts + at[:, None] * VALUE_WIDTH + wide[None, :], mask=is_out[None, :], other=0.0
    )
    peak = tl.max(most, 0)
    weight = tl.exp2(most - peak)
    whole = tl.sum(weight * total, 0)
    if HAS_SINKS:
        whole += tl.exp2(tl.load(sinks + number % HEADS).to(tl.float32) * LOG2_E - peak)
    answer = tl.sum(part * weight[:, None], 0) / tl.where(whole > 0, whole, 1.0)
    tl.store(out + number * VALUE_WIDTH + wide, answer.to(out.dtype.element_ty), mask=is_out)


def attend(queries: torch.Tensor, pages: Pages, step: Step) -> torch.Tensor:
    heads, count = pages.heads, queries.shape[1]
    queries = queries.contiguous()
    out = queries.new_empty(len(queries), count, heads.value)
    if step.decodes:
        wanted = PROGRAMS // (step.decodes * heads.count)
        splits = min(MOST_SPLITS, 1 << max(wanted, 1).bit_length() - 1)
        parts, sums = out, out
        if splits > 1:
            parts, sums = (
                queries.new_empty(step.decodes, count, splits, width, dtype=torch.float32)
                for width in (heads.value, 2)
            )
        _launch(queries, pages, step, parts, sums, splits=splits)
        if splits > 1:
            combine_kernel[(step.decodes * count,)](
                parts, sums, queries if heads.sinks is None else heads.sinks, out,
                HEADS=count, VALUE_WIDTH=heads.value,
                PAD_VALUE_WIDTH=triton.next_power_of_2(heads.value), SPLITS=splits,
                HAS_SINKS=heads.sinks is not None,
                num_warps=2, **LAUNCH,
            )  # fmt: skip
    if step.tiles is not None:
        _launch(queries, pages, step, out, out, tiles=step.tiles)
    return out


def _launch(
    queries: torch.Tensor,
    pages: Pages,
    step: Step,
    out: torch.Tensor,
    sums: torch.Tensor,
    *,
    splits: int = 1,
    tiles: torch.Tensor | None = None,
) -> None:
    heads, count = pages.heads, queries.shape[1]
    tokens = 1 if tiles is None else step.tile_tokens
    rows = max(16, triton.next_power_of_2(tokens * count // heads.count))
    is_wide = max(heads.key, heads.value) > WIDE
    keys, warps = (32, 4) if is_wide or splits >= MANY else (64, 2)
    attend_kernel[step.decodes if tiles is None else len(tiles), heads.count, splits](
        queries, pages.keys, pages.values, out, step.table, step.rows, step.lengths,
        step.lengths if tiles is None else tiles,
        queries if heads.sinks is None else heads.sinks,
        sums, heads.scale, heads.softcap or 0.0, queries.stride(0), step.table.stride(0),
        HEADS=count, KV_HEADS=heads.count, WIDTH=heads.key, VALUE_WIDTH=heads.value,
        PAD_WIDTH=max(16, triton.next_power_of_2(heads.key)),
        PAD_VALUE_WIDTH=max(16, triton.next_power_of_2(heads.value)),
        PAGE=BLOCK_TOKENS, ROWS=rows, KEYS=keys, SPLITS=splits,
        WINDOW=heads.window or 0, IS_TILED=tiles is not None, HAS_SOFTCAP=bool(heads.softcap),
        HAS_SINKS=heads.sinks is not None,
        num_warps=8 if rows >= WIDE else warps, num_stages=2, **LAUNCH,
    )  # fmt: skip
