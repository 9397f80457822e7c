"""
The gated delta rule for sequences that decode: two kernels, whose time is that of the states.

Pieces of prompts go through plain torch: few large products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.neuron.engine.kernels import reference
from cortex.neuron.engine.layers import Delta
from cortex.neuron.engine.states import State
from cortex.neuron.engine.step import Step

LONG = tl.constexpr(20.0)  # times beyond are what their softplus is
PART = 512  # channels of the convolution a program does


@triton.jit
def convolve_kernel(
    inputs, latest, taps, rows, out, stride,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Convolve some channels of one token with those before it, and keep it for those after."""
    number, at = tl.program_id(0), tl.program_id(1) * PART + tl.arange(0, PART)
    is_in = at < CHANNELS
    row = tl.load(rows + number)
    is_kept = at < tl.where(row > 0, CHANNELS, 0)  # padding's stays zero
    now = tl.load(latest + number * stride + at, mask=is_in, other=0.0)
    total = now.to(tl.float32) * tl.load(taps + (TAPS - 1) * CHANNELS + at, mask=is_in, other=0.0)
    slot = inputs + row * (TAPS - 1) * CHANNELS + at
    for tap in tl.static_range(TAPS - 1):
        was = tl.load(slot + tap * CHANNELS, mask=is_in, other=0.0)
        total += was.to(tl.float32) * tl.load(taps + tap * CHANNELS + at, mask=is_in, other=0.0)
        if tap > 0:
            tl.store(slot + (tap - 1) * CHANNELS, was, mask=is_kept)
    if TAPS > 1:
        tl.store(slot + (TAPS - 2) * CHANNELS, now, mask=is_kept)
    tl.store(out + number * CHANNELS + at, total / (1.0 + tl.exp(-total)), mask=is_in)


@triton.jit
def unit(vector):
    """Return a vector of length one."""
    return vector / tl.sqrt(tl.sum(vector * vector, 0) + 1e-6)


@triton.jit
def delta_kernel(
    mixed, gates, amounts, times, decay, delay, weight, memory, rows, out, stride, eps,
    KEY_HEADS: tl.constexpr, VALUE_HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    KEY_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
):  # fmt: skip
    """Write one head of one token into its memory, read it, norm what is read and gate it."""
    number, head = tl.program_id(0), tl.program_id(1)
    low, wide = tl.arange(0, KEY_PAD), tl.arange(0, VALUE_PAD)
    is_low, is_wide = low < KEY, wide < VALUE
    row = tl.load(rows + number)
    start = mixed + number * (2 * KEY_HEADS * KEY + VALUE_HEADS * VALUE)
    shared = start + head // (VALUE_HEADS // KEY_HEADS) * KEY + low
    query = unit(tl.load(shared, mask=is_low, other=0.0)) * KEY**-0.5
    key = unit(tl.load(shared + KEY_HEADS * KEY, mask=is_low, other=0.0))
    own = start + 2 * KEY_HEADS * KEY + head * VALUE + wide
    value = tl.load(own, mask=is_wide, other=0.0)
    time = tl.load(times + number * stride + head).to(tl.float32)
    time += tl.load(delay + head).to(tl.float32)
    time = tl.where(time > LONG, time, tl.log(1.0 + tl.exp(tl.minimum(time, LONG))))
    fade = tl.exp(tl.load(decay + head) * time)
    amount = 1.0 / (1.0 + tl.exp(-tl.load(amounts + number * stride + head).to(tl.float32)))
    at = memory + ((row * VALUE_HEADS + head) * KEY + low)[:, None] * VALUE + wide[None, :]
    is_in = is_low[:, None] & is_wide[None, :]
    kept = tl.load(at, mask=is_in, other=0.0) * fade
    off = value - tl.sum(kept * key[:, None], 0)
    kept += key[:, None] * (amount * off)[None, :]
    is_own = low < tl.where(row > 0, KEY, 0)  # padding's stays zero
    tl.store(at, kept, mask=is_own[:, None] & is_wide[None, :])
    found = tl.sum(kept * query[:, None], 0)
    found /= tl.sqrt(tl.sum(found * found, 0) / VALUE + eps)
    found *= tl.load(weight + wide, mask=is_wide, other=0.0).to(tl.float32)
    gate = tl.load(gates + number * stride + head * VALUE + wide, mask=is_wide, other=0.0)
    gate = gate.to(tl.float32)
    answer = found * gate / (1.0 + tl.exp(-gate))
    to = out + (number * VALUE_HEADS + head) * VALUE + wide
    tl.store(to, answer.to(out.dtype.element_ty), mask=is_wide)


def delta(projected: torch.Tensor, layer: Delta, state: State, step: Step) -> torch.Tensor:
    shape = layer.shape
    out = projected.new_empty(len(projected), shape.value_heads * shape.value)
    if step.decodes:
        _decode(projected[: step.decodes], layer, state, step, out)
    if step.decodes < len(projected):
        out[step.decodes :] = reference.delta_chunks(projected[step.decodes :], layer, state, step)
    return out


def _decode(
    projected: torch.Tensor, layer: Delta, state: State, step: Step, out: torch.Tensor
) -> None:
    shape, count = layer.shape, len(projected)
    latest, gates, amounts, times = layer.parts(projected)
    mixed = torch.empty(count, shape.channels, device=out.device)
    convolve_kernel[count, triton.cdiv(shape.channels, PART)](
        state.inputs, latest, layer.taps, step.rows, mixed, latest.stride(0),
        CHANNELS=shape.channels, TAPS=shape.taps, PART=PART,
    )  # fmt: skip
    delta_kernel[count, shape.value_heads](
        mixed, gates, amounts, times, layer.decay, layer.delay, layer.after.weight,
        state.memory, step.rows, out, latest.stride(0), layer.after.eps,
        KEY_HEADS=shape.key_heads, VALUE_HEADS=shape.value_heads,
        KEY=shape.key, VALUE=shape.value,
        KEY_PAD=triton.next_power_of_2(shape.key), VALUE_PAD=triton.next_power_of_2(shape.value),
        num_warps=8,
    )  # fmt: skip
