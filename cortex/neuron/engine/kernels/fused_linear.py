"""
Norms and linear layers.

A linear layer over few tokens is bound by reading its weight, so whatever stands before and behind
it goes into the same pass: the norm's factor is one number a token, applied to the sums.  Over many
tokens cuBLAS multiplies, and what it adds to it adds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn import functional

from cortex.neuron.engine.layers import Linear, Norm

FEW = 1  # tokens that are multiplied one by one
SOME = 16  # tokens whose layers are still bound by reading weights
LARGE, WIDE = 1 << 22, 8192  # of weights; measured: docs/design/engine-speed.md
QUANTISED_SOME = 64  # the same where a weight has to be expanded first


@triton.jit
def norm_kernel(
    x, weight, out, eps, shift, WIDTH: tl.constexpr, PAD: tl.constexpr
):  # fmt: skip
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
def expand_kernel(weight, scale, out, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """Expand one row of a quantised weight."""
    row, at = tl.program_id(0), tl.arange(0, PAD)
    is_in = at < WIDTH
    start = row.to(tl.int64) * WIDTH
    value = tl.load(weight + start + at, mask=is_in, other=0.0).to(tl.float32)
    value *= tl.load(scale + row)
    tl.store(out + start + at, value.to(out.dtype.element_ty), mask=is_in)


@triton.jit
def linear_kernel(
    x, weight, bias, scale, norm, out, eps, shift, factor, tokens,
    WIDTH: tl.constexpr, OUT: tl.constexpr,
    PAD_TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_NORM: tl.constexpr,
    IS_GATED: tl.constexpr, IS_ADDED: tl.constexpr,
):  # fmt: skip
    """
    Do some rows of the weight for all tokens: for one by sums, for several by the tensor cores.

    Where it is gated, row i of the weight is the gate and row OUT + i what it is for.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < OUT
    token = tl.arange(0, PAD_TOKENS)
    start = row.to(tl.int64) * WIDTH
    if PAD_TOKENS == 1:
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        ups = tl.zeros([ROWS, COLUMNS], tl.float32)
        squares = tl.zeros([COLUMNS], tl.float32)
    else:
        sums = tl.zeros([PAD_TOKENS, ROWS], tl.float32)
        ups = tl.zeros([PAD_TOKENS, ROWS], tl.float32)
        squares = tl.zeros([PAD_TOKENS], tl.float32)
    for first in tl.range(0, WIDTH, COLUMNS, num_stages=STAGES):
        column = first + tl.arange(0, COLUMNS)
        is_column = column < WIDTH
        is_weight = is_row[:, None] & is_column[None, :]
        where = start[:, None] + column[None, :]
        w = tl.load(weight + where, mask=is_weight, other=0.0)
        if IS_GATED:
            u = tl.load(weight + where + OUT * WIDTH, mask=is_weight, other=0.0)
        if PAD_TOKENS == 1:
            part = tl.load(x + column, mask=is_column, other=0.0).to(tl.float32)
            if HAS_NORM:
                squares += part * part
                by = tl.load(norm + column, mask=is_column, other=0.0).to(tl.float32) + shift
                part *= by
            sums += w.to(tl.float32) * part[None, :]
            if IS_GATED:
                ups += u.to(tl.float32) * part[None, :]
        else:
            part = tl.load(
                x + token[:, None] * WIDTH + column[None, :],
                mask=(token < tokens)[:, None] & is_column[None, :],
                other=0.0,
            )
            if HAS_NORM:
                wide = part.to(tl.float32)
                squares += tl.sum(wide * wide, 1)
                by = tl.load(norm + column, mask=is_column, other=0.0).to(tl.float32) + shift
                part = (wide * by[None, :]).to(part.dtype)
            sums += tl.dot(part, tl.trans(w.to(part.dtype)), input_precision="ieee")
            if IS_GATED:
                ups += tl.dot(part, tl.trans(u.to(part.dtype)), input_precision="ieee")
    if PAD_TOKENS == 1:
        answer = tl.sum(sums, 1)[None, :]
        up = tl.sum(ups, 1)[None, :]
        root = tl.full([1], 1.0, tl.float32)
        if HAS_NORM:
            root = root / tl.sqrt(tl.sum(squares, 0) / WIDTH + eps)
    else:
        answer = sums
        up = ups
        root = tl.full([PAD_TOKENS], 1.0, tl.float32)
        if HAS_NORM:
            root = root / tl.sqrt(squares / WIDTH + eps)
    answer *= root[:, None]
    up *= root[:, None]
    if HAS_SCALE:
        answer *= tl.load(scale + row, mask=is_row, other=0.0)[None, :]
        if IS_GATED:
            up *= tl.load(scale + OUT + row, mask=is_row, other=0.0)[None, :]
    if HAS_BIAS:
        answer += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[None, :]
        if IS_GATED:
            up += tl.load(bias + OUT + row, mask=is_row, other=0.0).to(tl.float32)[None, :]
    if IS_GATED:
        answer = answer / (1.0 + tl.exp(-answer)) * up
    to = out + token[:, None] * OUT + row[None, :]
    is_out = (token < tokens)[:, None] & is_row[None, :]
    if IS_ADDED:
        answer = tl.load(to, mask=is_out, other=0.0).to(tl.float32) + factor * answer
    tl.store(to, answer.to(out.dtype.element_ty), mask=is_out)


def norm(x: torch.Tensor, of: Norm) -> torch.Tensor:
    out = torch.empty_like(x)
    width = x.shape[-1]
    norm_kernel[(x.numel() // width,)](
        x, of.weight, out, of.eps, of.shift, WIDTH=width, PAD=triton.next_power_of_2(width),
       
    )  # fmt: skip
    return out


def linear(x: torch.Tensor, layer: Linear, before: Norm | None = None) -> torch.Tensor:
    if _is_small(x, layer):
        return _small(x, layer, x.new_empty(len(x), len(layer.weight)), before=before)
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
    else:
        residual.addmm_(x, _expanded(layer, x.dtype).T, alpha=factor)
        if layer.bias is not None:
            residual.add_(layer.bias, alpha=factor)


def _is_small(x: torch.Tensor, layer: Linear) -> bool:
    return 0 < len(x) <= (SOME if layer.scale is None else QUANTISED_SOME)


def _expanded(layer: Linear, dtype: torch.dtype) -> torch.Tensor:
    """Return a layer's weight as what it is multiplied as."""
    if layer.scale is None:
        return layer.weight
    rows, width = layer.weight.shape
    out = layer.weight.new_empty(rows, width, dtype=dtype)
    expand_kernel[(rows,)](
        layer.weight, layer.scale, out, WIDTH=width, PAD=triton.next_power_of_2(width)
    )
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
    rows, columns, warps, stages = tile(tokens, out.shape[1], width, is_gated=is_gated)
    linear_kernel[(triton.cdiv(out.shape[1], rows),)](
        x, layer.weight,
        x if layer.bias is None else layer.bias,
        x if layer.scale is None else layer.scale,
        x if before is None else before.weight,
        out,
        0.0 if before is None else before.eps,
        0.0 if before is None else before.shift,
        factor, tokens,
        WIDTH=width, OUT=out.shape[1], 
        PAD_TOKENS=1 if tokens <= FEW else max(16, triton.next_power_of_2(tokens)),
        ROWS=rows, COLUMNS=columns, STAGES=stages,
        HAS_BIAS=layer.bias is not None, HAS_SCALE=layer.scale is not None,
        HAS_NORM=before is not None, IS_GATED=is_gated, IS_ADDED=is_added,
        num_warps=warps
    )  # fmt: skip
    return out


def tile(tokens: int, out: int, width: int, *, is_gated: bool) -> tuple[int, int, int, int]:
    """Return rows and columns of the weight a program takes at a time, its warps and stages."""
    if tokens <= FEW:
        if is_gated:
            return 8, 512, 4, 1
        return (16, 512, 8, 1) if out * width >= LARGE else (4, 512, 4, 1)
    return (64, 64, 4, 4) if is_gated and out >= WIDE else (32, 256, 4, 3)
