"""
Attention over pages, for decodes and for tiles of prompts.

Keys of a sequence that decodes are split among programs, since one sequence alone would leave most
of a GPU idle; the last program of a sequence that is through puts their parts together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.cache import Pages
from cortex.neuron.engine.step import Step

MOST_SPLITS = 32
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_kernel(
    queries, keys, values, out, table, owners, lengths, tiles, sinks, parts, sums, arrived,
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
    GROUP: tl.constexpr = HEADS // KV_HEADS
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if IS_TILED:
        owner = tl.load(tiles + tile * 4)
        first = tl.load(tiles + tile * 4 + 1)
        count = tl.load(tiles + tile * 4 + 2)
        end = tl.load(tiles + tile * 4 + 3)
    else:
        owner, first, count = tl.load(owners + tile), tile, 1
        end = tl.load(lengths + tile)
    row = tl.arange(0, ROWS)
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    is_row = token < count
    wide, value_wide = tl.arange(0, PAD_WIDTH), tl.arange(0, PAD_VALUE_WIDTH)
    q = tl.load(
        queries + (first + token)[:, None] * query_stride + head[:, None] * WIDTH + wide[None, :],
        mask=is_row[:, None] & (wide < WIDTH)[None, :],
        other=0.0,
    )
    place = end - count + token  # of each row's token in its sequence
    share = tl.cdiv(tl.cdiv(end, SPLITS), KEYS) * KEYS
    low = split * share
    high = tl.minimum(low + share, end)
    if WINDOW > 0:
        low = tl.maximum(low, tl.maximum(end - count - WINDOW + 1, 0) // KEYS * KEYS)
    most = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sofar = tl.zeros([ROWS, PAD_VALUE_WIDTH], tl.float32)
    for start in range(low, high, KEYS):
        at = start + tl.arange(0, KEYS)
        is_key = at < high
        page = tl.load(table + owner * table_stride + at // PAGE, mask=is_key, other=0)
        slot = (page.to(tl.int64) * PAGE + at % PAGE) * KV_HEADS + kv_head
        k = tl.load(
            keys + slot[None, :] * WIDTH + wide[:, None],
            mask=is_key[None, :] & (wide < WIDTH)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if HAS_SOFTCAP:  # by way of exp: tanh is not everywhere
            squeezed = 2.0 / (1.0 + tl.exp(-2.0 * scores / softcap)) - 1.0
            scores = softcap * squeezed
        scores *= LOG2_E
        seen = is_key[None, :] & (at[None, :] <= place[:, None])
        if WINDOW > 0:
            seen = seen & (at[None, :] > place[:, None] - WINDOW)
        scores = tl.where(seen, scores, -1e30)
        now_most = tl.maximum(most, tl.max(scores, 1))
        shares = tl.where(seen, tl.exp2(scores - now_most[:, None]), 0.0)
        fade = tl.exp2(most - now_most)
        total = total * fade + tl.sum(shares, 1)
        v = tl.load(
            values + slot[:, None] * VALUE_WIDTH + value_wide[None, :],
            mask=is_key[:, None] & (value_wide < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        sofar = sofar * fade[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        most = now_most
    to = ((first + token) * HEADS + head)[:, None] * VALUE_WIDTH + value_wide[None, :]
    is_out = is_row[:, None] & (value_wide < VALUE_WIDTH)[None, :]
    if SPLITS == 1:
        if HAS_SINKS:
            sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32)
            total += tl.exp2(sink * LOG2_E - most)
        sofar = sofar / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + to, sofar.to(out.dtype.element_ty), mask=is_out)
    else:
        part = (tile * HEADS + head) * SPLITS + split
        tl.store(parts + part[:, None] * VALUE_WIDTH + value_wide[None, :], sofar, mask=is_out)
        tl.store(sums + part * 2, most, mask=is_row)
        tl.store(sums + part * 2 + 1, total, mask=is_row)
        tl.debug_barrier()
        group = tile * KV_HEADS + kv_head
        if tl.atomic_add(arrived + group, 1, sem="acq_rel") == SPLITS - 1:
            tl.store(arrived + group, 0)
            each = (tile * HEADS + head[:, None]) * SPLITS + tl.arange(0, SPLITS)[None, :]
            mosts = tl.load(sums + each * 2, mask=is_row[:, None], other=0.0, cache_modifier=".cg")
            peak = tl.max(mosts, 1)
            whole = tl.zeros([ROWS], tl.float32)
            answer = tl.zeros([ROWS, PAD_VALUE_WIDTH], tl.float32)
            for number in tl.static_range(SPLITS):
                one = (tile * HEADS + head) * SPLITS + number
                other_most = tl.load(sums + one * 2, mask=is_row, other=0.0, cache_modifier=".cg")
                others = tl.load(sums + one * 2 + 1, mask=is_row, other=0.0, cache_modifier=".cg")
                weight = tl.exp2(other_most - peak)
                whole += weight * others
                piece = tl.load(
                    parts + one[:, None] * VALUE_WIDTH + value_wide[None, :],
                    mask=is_out,
                    other=0.0,
                    cache_modifier=".cg",
                )
                answer += weight[:, None] * piece
            if HAS_SINKS:
                sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32)
                whole += tl.exp2(sink * LOG2_E - peak)
            answer = answer / tl.where(whole > 0, whole, 1.0)[:, None]
            tl.store(out + to, answer.to(out.dtype.element_ty), mask=is_out)


def attend(queries: torch.Tensor, pages: Pages, step: Step) -> torch.Tensor:
    out = queries.new_empty(*queries.shape[:2], pages.heads.value)
    if step.decodes:
        wanted = pages.arrived.numel() // (step.decodes * pages.heads.count)
        splits = min(MOST_SPLITS, 1 << max(wanted, 1).bit_length() - 1)
        _launch(queries, pages, step, out, tokens=1, splits=splits)
    if step.tiles is not None:
        _launch(queries, pages, step, out, tokens=step.tile_tokens, tiles=step.tiles)
    return out


def _launch(
    queries: torch.Tensor,
    pages: Pages,
    step: Step,
    out: torch.Tensor,
    *,
    tokens: int,
    splits: int = 1,
    tiles: torch.Tensor | None = None,
) -> None:
    heads, count = pages.heads, queries.shape[1]
    rows = max(16, triton.next_power_of_2(tokens * count // heads.count))
    number = step.decodes if tiles is None else len(tiles)
    parts = sums = queries
    if splits > 1:
        parts = queries.new_empty(number, count, splits, heads.value, dtype=torch.float32)
        sums = queries.new_empty(number, count, splits, 2, dtype=torch.float32)
    wide = max(heads.key, heads.value)
    attend_kernel[number, heads.count, splits](
        queries, pages.keys, pages.values, out, step.table, step.rows, step.lengths,
        step.lengths if tiles is None else tiles,
        queries if heads.sinks is None else heads.sinks,
        parts, sums, pages.arrived,
        heads.scale, heads.softcap or 0.0, queries.stride(0), step.table.stride(0),
        HEADS=count, KV_HEADS=heads.count, WIDTH=heads.key, VALUE_WIDTH=heads.value,
        PAD_WIDTH=max(16, triton.next_power_of_2(heads.key)),
        PAD_VALUE_WIDTH=max(16, triton.next_power_of_2(heads.value)),
        PAGE=BLOCK_TOKENS, ROWS=rows, KEYS=64 if wide <= 128 else 32, SPLITS=splits,
        WINDOW=heads.window or 0, IS_TILED=tiles is not None,
        HAS_SOFTCAP=bool(heads.softcap), HAS_SINKS=heads.sinks is not None,
        num_warps=8 if rows >= 128 else 4, num_stages=2
    )  # fmt: skip
