"""
Norms and linear layers.

A linear layer over few tokens is bound by reading its weight, so whatever stands before and behind
it goes into the same pass: the norm's factor is one number a token, applied to the sums.  Over many
tokens cuBLAS multiplies, and what it adds to it adds; with a weight in fp8 it takes tokens in fp8
too, each with a scale of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn import functional

from cortex.neuron.engine.kernels.fused.overlap import LAUNCH, let_next_begin, wait_for_last
from cortex.neuron.engine.kernels.fused.tiles import tile
from cortex.neuron.engine.layers import Linear, Norm

SOME = 16  # tokens whose layers are bound by reading weights
INT8_SOME = 64  # the same where a weight would have to be expanded first
LIFT = tl.constexpr(2.0**60)  # twice, it makes up for how eight bits are widened


@triton.jit
def norm_kernel(x, weight, out, eps, shift, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """Norm one token."""
    at = tl.program_id(0) * WIDTH + tl.arange(0, PAD)
    is_in = tl.arange(0, PAD) < WIDTH
    row = tl.load(x + at, mask=is_in, other=0.0).to(tl.float32)
    root = 1.0 / tl.sqrt(tl.sum(row * row, 0) / WIDTH + eps)
    scale = tl.load(weight + tl.arange(0, PAD), mask=is_in, other=0.0).to(tl.float32) + shift
    tl.store(out + at, (row * root * scale).to(out.dtype.element_ty), mask=is_in)


@triton.jit
def gate_kernel(x, out, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """Multiply what comes of a gate with what it is for, of a part of one token."""
    token = tl.program_id(0)
    at = tl.program_id(1) * PAD + tl.arange(0, PAD)
    is_in = at < WIDTH
    gate = tl.load(x + token * 2 * WIDTH + at, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(x + token * 2 * WIDTH + WIDTH + at, mask=is_in, other=0.0).to(tl.float32)
    answer = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + token * WIDTH + at, answer.to(out.dtype.element_ty), mask=is_in)


@triton.jit
def narrow_kernel(
    x, weight, out, scales, eps, shift, WIDTH: tl.constexpr, PAD: tl.constexpr,
    HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Keep one token, normed before if it is to be, in fp8 with a scale."""
    token, at = tl.program_id(0), tl.arange(0, PAD)
    is_in = at < WIDTH
    row = tl.load(x + token * WIDTH + at, mask=is_in, other=0.0).to(tl.float32)
    if HAS_NORM:
        root = 1.0 / tl.sqrt(tl.sum(row * row, 0) / WIDTH + eps)
        row *= root * (tl.load(weight + at, mask=is_in, other=0.0).to(tl.float32) + shift)
    scale = tl.maximum(tl.max(tl.abs(row), 0), 1e-12) / 448.0
    tl.store(out + token * WIDTH + at, (row / scale).to(out.dtype.element_ty), mask=is_in)
    tl.store(scales + token, scale)


@triton.jit
def expand_kernel(weight, scale, out, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """Expand one row of a quantised weight."""
    row, at = tl.program_id(0), tl.arange(0, PAD)
    is_in = at < WIDTH
    start = row.to(tl.int64) * WIDTH
    value = tl.load(weight + start + at, mask=is_in, other=0.0).to(tl.float32)
    value *= tl.load(scale + row)
    tl.store(out + start + at, value.to(out.dtype.element_ty), mask=is_in)


@triton.jit
def read(weight, start, is_row, column, WIDTH: tl.constexpr, OFF: tl.constexpr):
    """Return some columns of rows of a weight, and of those that are *OFF* behind them."""
    is_in = is_row[:, None] & (column < WIDTH)[None, :]
    at = weight + start[:, None] + column[None, :]
    w = tl.load(at, mask=is_in, other=0.0)
    u = w
    if OFF > 0:
        u = tl.load(at + OFF, mask=is_in, other=0.0)
    return w, u


@triton.jit
def added(
    sums, ups, squares, w, u, x, norm, column, shift, WIDTH: tl.constexpr, OFF: tl.constexpr,
    HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Add what some columns of a weight come to."""
    part = tl.load(x + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares += part * part
        part *= tl.load(norm + column, mask=column < WIDTH, other=0.0).to(tl.float32) + shift
    sums += w.to(tl.float32) * part[None, :]
    if OFF > 0:
        ups += u.to(tl.float32) * part[None, :]
    return sums, ups, squares


@triton.jit
def summed(
    x, weight, norm, start, is_row, shift, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, OFF: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """
    Multiply one token with rows of a weight: [1, rows]; and say how long it is, squared.

    What takes longest is asked for first: the weight before the token, and its first columns before
    the kernel is done that makes the token.
    """
    column = tl.arange(0, COLUMNS)
    w, u = read(weight, start, is_row, column, WIDTH, OFF)
    wait_for_last()
    none = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([COLUMNS], tl.float32)
    sums, ups, squares = added(
        none, none, squares, w, u, x, norm, column, shift, WIDTH, OFF, HAS_NORM
    )
    for first in tl.range(COLUMNS, WIDTH, COLUMNS, num_stages=1):  # more only cost registers
        w, u = read(weight, start, is_row, first + column, WIDTH, OFF)
        sums, ups, squares = added(
            sums, ups, squares, w, u, x, norm, first + column, shift, WIDTH, OFF, HAS_NORM
        )
    return tl.sum(sums, 1)[None, :], tl.sum(ups, 1)[None, :], tl.sum(squares, 0)[None]


@triton.jit
def widened(w, like, IS_BITS: tl.constexpr):
    """
    Return weights as numbers of the type of *like*.

    The bits of fp8, put where bfloat16 has its own, are the number times 2^-120: three operations
    on two numbers at a time, where converting takes three on each.
    """
    if IS_BITS:
        return ((w.to(tl.int16) << 4) & -0x7810).to(tl.bfloat16, bitcast=True)
    return w.to(like.dtype)


@triton.jit
def multiplied(
    x, weight, norm, start, is_row, shift, tokens, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, OFF: tl.constexpr, HAS_NORM: tl.constexpr,
    IS_BITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Do the same for several tokens, [tokens, rows] and [tokens], on the tensor cores."""
    token = tl.arange(0, TOKENS)
    sums = tl.zeros([TOKENS, ROWS], tl.float32)
    ups = tl.zeros([TOKENS, ROWS], tl.float32)
    squares = tl.zeros([TOKENS], tl.float32)
    for first in tl.range(0, WIDTH, COLUMNS, num_stages=STAGES):
        column = first + tl.arange(0, COLUMNS)
        is_column = column < WIDTH
        is_in = is_row[:, None] & is_column[None, :]
        at = weight + start[:, None] + column[None, :]
        x_in = (token < tokens)[:, None] & is_column[None, :]
        w = tl.load(at, mask=is_in, other=0.0)
        if OFF > 0:
            u = tl.load(at + OFF, mask=is_in, other=0.0)
        part = tl.load(x + token[:, None] * WIDTH + column[None, :], mask=x_in, other=0.0)
        if HAS_NORM:
            wide = part.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            by = tl.load(norm + column, mask=is_column, other=0.0).to(tl.float32) + shift
            part = (wide * by[None, :]).to(part.dtype)
        if IS_BITS:
            part = (part.to(tl.float32) * LIFT).to(part.dtype)
        sums += tl.dot(part, tl.trans(widened(w, part, IS_BITS)), input_precision="ieee")
        if OFF > 0:
            ups += tl.dot(part, tl.trans(widened(u, part, IS_BITS)), input_precision="ieee")
    return sums, ups, squares


@triton.jit
def scaled(
    sums, bias, scale, row, is_row, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr
):  # fmt: skip
    """Return sums with what belongs to the rows of a weight: its scale, and a bias."""
    if HAS_SCALE:
        sums *= tl.load(scale + row, mask=is_row, other=0.0)[None, :]
    if HAS_BIAS:
        sums += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[None, :]
    return sums


@triton.jit(do_not_specialize=["tokens"])
def linear_kernel(
    x, weight, bias, scale, norm, out, eps, shift, factor, tokens,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, STAGES: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_NORM: tl.constexpr, IS_GATED: tl.constexpr,
    IS_ADDED: tl.constexpr, IS_BITS: tl.constexpr,
):  # fmt: skip
    """
    Do some rows of the weight for all tokens: for one by sums, for several by the tensor cores.

    Where it is gated, row i of the weight is the gate and row OUT + i what it is for.
    """
    if TOKENS == 1:
        let_next_begin()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < OUT
    start = row.to(tl.int64) * WIDTH
    OFF: tl.constexpr = OUT * WIDTH if IS_GATED else 0
    if TOKENS == 1:
        sums, ups, squares = summed(
            x, weight, norm, start, is_row, shift, WIDTH, ROWS, COLUMNS, OFF, HAS_NORM
        )
    else:
        sums, ups, squares = multiplied(
            x, weight, norm, start, is_row, shift, tokens, TOKENS, WIDTH, ROWS, COLUMNS, OFF,
            HAS_NORM, IS_BITS, STAGES,
        )  # fmt: skip
    if IS_BITS:
        sums *= LIFT
        ups *= LIFT
    if HAS_NORM:
        root = 1.0 / tl.sqrt(squares / WIDTH + eps)
        sums *= root[:, None]
        ups *= root[:, None]
    answer = scaled(sums, bias, scale, row, is_row, HAS_BIAS, HAS_SCALE)
    if IS_GATED:
        up = scaled(ups, bias, scale, OUT + row, is_row, HAS_BIAS, HAS_SCALE)
        answer = answer / (1.0 + tl.exp(-answer)) * up
    token = tl.arange(0, TOKENS)
    to = out + token[:, None] * OUT + row[None, :]
    is_out = (token < tokens)[:, None] & is_row[None, :]
    if IS_ADDED:
        answer = tl.load(to, mask=is_out, other=0.0).to(tl.float32) + factor * answer
    tl.store(to, answer.to(out.dtype.element_ty), mask=is_out)


def norm(x: torch.Tensor, of: Norm) -> torch.Tensor:
    out = torch.empty_like(x)
    width = x.shape[-1]
    pad = triton.next_power_of_2(width)
    norm_kernel[(x.numel() // width,)](x, of.weight, out, of.eps, of.shift, WIDTH=width, PAD=pad)
    return out


def linear(x: torch.Tensor, layer: Linear, before: Norm | None = None) -> torch.Tensor:
    if _is_small(x, layer):
        return _small(x, layer, x.new_empty(len(x), len(layer.weight)), before=before)
    if _is_fp8(x, layer):
        return _narrow(x, layer, before)
    if before is not None:
        x = norm(x, before)
    return functional.linear(x, _expanded(layer, x.dtype), layer.bias)


def gated(x: torch.Tensor, layer: Linear, before: Norm) -> torch.Tensor:
    width = len(layer.weight) // 2
    out = x.new_empty(len(x), width)
    if _is_small(x, layer):
        return _small(x, layer, out, before=before, is_gated=True)
    both = linear(x, layer, before)
    gate_kernel[len(x), triton.cdiv(width, 1024)](both, out, WIDTH=width, PAD=1024)
    return out


def add(x: torch.Tensor, layer: Linear, residual: torch.Tensor, factor: float = 1.0) -> None:
    if _is_small(x, layer):
        _small(x, layer, residual, is_added=True, factor=factor)
    elif _is_fp8(x, layer):
        residual.add_(_narrow(x, layer), alpha=factor)
    else:
        residual.addmm_(x, _expanded(layer, x.dtype).T, alpha=factor)
        if layer.bias is not None:
            residual.add_(layer.bias, alpha=factor)


def _is_small(x: torch.Tensor, layer: Linear) -> bool:
    return 0 < len(x) <= (INT8_SOME if layer.weight.dtype == torch.int8 else SOME)


def _is_fp8(x: torch.Tensor, layer: Linear) -> bool:
    is_whole = not any(size % 16 for size in layer.weight.shape)  # as cuBLAS wants it
    return is_whole and layer.weight.dtype == torch.float8_e4m3fn and x.dtype == torch.bfloat16


def _narrow(x: torch.Tensor, layer: Linear, before: Norm | None = None) -> torch.Tensor:
    """Multiply in fp8, as vLLM's dynamic quantisation does: a scale a token, a scale a row."""
    tokens, width = x.shape
    narrow = x.new_empty(tokens, width, dtype=layer.weight.dtype)
    scales = x.new_empty(tokens, 1, dtype=torch.float32)
    narrow_kernel[(tokens,)](
        x, x if before is None else before.weight, narrow, scales,
        0.0 if before is None else before.eps,
        0.0 if before is None else before.shift,
        WIDTH=width, PAD=triton.next_power_of_2(width), HAS_NORM=before is not None, num_warps=8,
    )  # fmt: skip
    assert layer.scale is not None  # noqa: S101 - it is quantised
    by_row = functional.ScalingType.RowWise
    out = functional.scaled_mm(
        narrow, layer.weight.T, scales, by_row, layer.scale[None], by_row,
        output_dtype=x.dtype, use_fast_accum=True,
    )  # fmt: skip
    return out if layer.bias is None else out + layer.bias


def _expanded(layer: Linear, dtype: torch.dtype) -> torch.Tensor:
    """Return a layer's weight as what it is multiplied as."""
    if layer.scale is None:
        return layer.weight
    rows, width = layer.weight.shape
    out = layer.weight.new_empty(rows, width, dtype=dtype)
    pad = triton.next_power_of_2(width)
    expand_kernel[(rows,)](layer.weight, layer.scale, out, WIDTH=width, PAD=pad)
    return out


def _small(
    x: torch.Tensor,
    layer: Linear,
    out: torch.Tensor,
    *,
    before: Norm | None = None,
    is_gated: bool = False,
    is_added: bool = False,
    factor: float = 1.0,
) -> torch.Tensor:
    tokens, width = x.shape
    rows, columns, warps, stages = tile(
        tokens,
        out.shape[1],
        width,
        has_norm=before is not None,
        is_gated=is_gated,
        is_quantised=layer.scale is not None,
    )
    is_bits = tokens > 1 and _is_fp8(x, layer)
    linear_kernel[(triton.cdiv(out.shape[1], rows),)](
        x, layer.weight.view(torch.int8) if is_bits else layer.weight,
        x if layer.bias is None else layer.bias,
        x if layer.scale is None else layer.scale,
        x if before is None else before.weight,
        out,
        0.0 if before is None else before.eps,
        0.0 if before is None else before.shift,
        factor, tokens,
        TOKENS=1 if tokens == 1 else max(16, triton.next_power_of_2(tokens)),
        WIDTH=width, OUT=out.shape[1], ROWS=rows, COLUMNS=columns, STAGES=stages,
        HAS_BIAS=layer.bias is not None, HAS_SCALE=layer.scale is not None,
        HAS_NORM=before is not None, IS_GATED=is_gated, IS_ADDED=is_added,
        IS_BITS=is_bits, num_warps=warps, **(LAUNCH if tokens == 1 else {}),
    )  # fmt: skip
    return out
