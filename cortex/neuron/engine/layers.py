"""What the layers of a decoder are made of, taken out of transformers' modules."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from cortex.neuron.engine.states import Recurrence

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
DELTA = (
    *("A_log", "dt_bias", "conv1d", "conv_kernel_size", "layer_idx"),
    *("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim"),
)
OWN_ROTATION = ("dynamic", "longrope")  # their frequencies depend on how long a sequence is


@attrs.frozen(kw_only=True, eq=False)
class Linear:
    """
    A linear layer.

    Attributes:
        weight: # [out, in]
        bias: # [out]
        scale: What each row of the weight is to be multiplied with, if it is quantised.
            # [out] float32
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    def quantised(self, dtype: torch.dtype) -> Linear:
        """Return it with a weight of eight bits, of ``torch.float8_e4m3fn`` or ``torch.int8``."""
        limit = LARGEST[dtype]
        scale = self.weight.abs().amax(1).float().clamp(min=1e-12) / limit
        scaled = self.weight.float() / scale[:, None]
        if dtype == torch.int8:
            scaled = scaled.round_()
        return attrs.evolve(self, weight=scaled.clamp_(-limit, limit).to(dtype), scale=scale)


@attrs.frozen(kw_only=True, eq=False)
class Norm:
    """
    A root-mean-square norm.

    Attributes:
        weight: # [width]
        shift: What is added to the weight: 1 where it is kept around zero.
    """

    weight: torch.Tensor
    eps: float
    shift: float = 0.0


@attrs.frozen(kw_only=True, eq=False)
class Rotary:
    """
    A rotary embedding; component i of a head is turned with component i + width / 2.

    Attributes:
        frequencies: In radians a token; twice as many components of a head are turned.
            # [width / 2] float32
        scale: Of what is turned.
        axes: Which axis each of them goes by, where tokens have places on three; None if they never
            have.  # [width / 2] int64
    """

    frequencies: torch.Tensor
    scale: float = 1.0
    axes: torch.Tensor | None = None

    def turns(self, positions: torch.Tensor) -> torch.Tensor:
        """
        Return the cosines and sines tokens at *positions* are turned by, of all layers.

        Args:
            positions: # [tokens] or [3, tokens] int64

        Returns:
            # [2, tokens, width / 2] float32
        """
        if positions.ndim == 1:
            each = positions[:, None]
        else:
            assert self.axes is not None  # noqa: S101 - only models that see have such positions
            each = positions[self.axes].T
        angles = each * self.frequencies
        turns = torch.stack([angles.cos(), angles.sin()])
        return turns if self.scale == 1 else turns * self.scale


@attrs.frozen(kw_only=True, eq=False)
class Delta:
    """
    A layer of linear attention by the gated delta rule (Yang, Kautz and Hatamizadeh, 2024).

    Attributes:
        norm: Before it; None where that is done already.
        inward: Gives what `parts` tells apart.
        order: Where in that what comes first is, and so on; None is as it is.  # [out] int64
        taps: Of the convolution, the latest token's last.  # [taps, channels] float32
        decay: Of each head, a unit of time, as a logarithm.  # [value_heads] float32
        delay: Is added to times.  # [value_heads]
        after: Norm of each head's output.
        out: Back to the width of the model.
    """

    shape: Recurrence
    norm: Norm | None
    inward: Linear
    order: torch.Tensor | None
    taps: torch.Tensor
    decay: torch.Tensor
    delay: torch.Tensor
    after: Norm
    out: Linear

    def parts(self, projected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Tell apart what *inward* gave.

        Returns:
            Inputs of the convolution, gates of the output, how much of it is written, and times.
            # [tokens, channels], [tokens, value_heads x value], [tokens, value_heads] twice
        """
        shape, count = self.shape, self.shape.value_heads
        if self.order is not None:
            projected = projected[:, self.order]
        return torch.split(projected, [shape.channels, count * shape.value, count, count], -1)


def fuse(*modules: Any) -> Linear:
    """
    Return linear layers of one input as one.

    The modules' own weights are views of it from now on, so that nothing is there twice.

    Raises:
        TypeError: Some have a bias, and some do not.
    """
    biases = [module.bias for module in modules]
    if len({bias is None for bias in biases}) > 1:
        raise TypeError("of layers to be fused some have a bias")
    if len(modules) == 1:
        return Linear(weight=modules[0].weight, bias=biases[0])
    weight = torch.cat([module.weight for module in modules])
    parts = torch.split(weight, [module.weight.shape[0] for module in modules])
    for module, part in zip(modules, parts, strict=True):
        module.weight = torch.nn.Parameter(part, requires_grad=False)
    return Linear(weight=weight, bias=None if biases[0] is None else torch.cat(biases))


def norm_of(module: Any) -> Norm:
    """
    Return a module's norm; what it is is found by trying it.

    Raises:
        AttributeError: It has no weight.
    """
    weight = module.weight
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6))
    tried = module(torch.ones_like(weight)[None])[0]
    return Norm(weight=weight, eps=eps, shift=float((tried - weight).abs().max() > 0.5))  # noqa: PLR2004


def rotary_of(module: Any) -> Rotary:
    """
    Return a rotary embedding.

    Raises:
        TypeError: Its frequencies are not the same everywhere.
    """
    if module.rope_type in OWN_ROTATION:
        raise TypeError(f"its rotary embedding is of type {module.rope_type}")
    return Rotary(
        frequencies=module.inv_freq.float(),
        scale=float(module.attention_scaling),
        axes=_axes(module) if hasattr(module, "mrope_section") else None,
    )


def _axes(module: Any) -> torch.Tensor:
    """Return which axis each frequency goes by, found by a step on one axis after the other."""
    frequencies = module.inv_freq.float()
    steps = torch.eye(3, dtype=torch.int64, device=frequencies.device)[:, :, None, None]
    sines = [module(frequencies, step)[1].flatten()[: len(frequencies)] for step in steps]
    turned = torch.stack(sines) != 0
    if not (turned.sum(0) == 1).all():
        raise TypeError("its rotary embedding does not go by one axis a frequency")
    return turned.int().argmax(0)


def decoder_of(module: Any) -> Any:
    """Return the part of a model that makes text; of one that only does so, the model."""
    return getattr(getattr(module, "model", None), "language_model", module)


def is_delta(module: Any) -> bool:
    """Tell whether a module looks like a layer of the gated delta rule."""
    return all(hasattr(module, name) for name in DELTA)


def shape_of(module: Any) -> Recurrence:
    """Return the shape of a layer of the gated delta rule."""
    return Recurrence(
        key_heads=module.num_k_heads,
        value_heads=module.num_v_heads,
        key=module.head_k_dim,
        value=module.head_v_dim,
        taps=module.conv_kernel_size,
    )


def delta_of(module: Any, norm: Norm | None = None) -> Delta:
    """
    Return a layer of the gated delta rule, with the norm before it.

    Raises:
        AttributeError: It has other modules than are looked for.
        TypeError: They are not what they are looked for.
    """
    shape = shape_of(module)
    if module.conv1d.bias is not None:
        raise TypeError("its convolution has a bias")
    if module.activation not in {"silu", "swish"}:
        raise TypeError(f"its convolution is followed by {module.activation}")
    if hasattr(module, "in_proj_qkvz"):
        inward, order = fuse(module.in_proj_qkvz, module.in_proj_ba), _order(shape)
    else:
        names = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
        inward, order = fuse(*(getattr(module, name) for name in names)), None
    device = inward.weight.device
    return Delta(
        shape=shape,
        norm=norm,
        inward=inward,
        order=None if order is None else order.to(device),
        taps=module.conv1d.weight[:, 0].float().T.contiguous(),
        decay=-module.A_log.float().exp(),
        delay=module.dt_bias,
        after=Norm(weight=module.norm.weight, eps=module.norm.variance_epsilon),
        out=fuse(module.out_proj),
    )


def _order(shape: Recurrence) -> torch.Tensor:
    """Return where things are that come by head of keys: queries, keys, values and gates; rest."""
    group = shape.value_heads // shape.key_heads
    width = group * shape.value
    several = [shape.key, shape.key, width, width]
    first = shape.key_heads * sum(several)
    places = torch.split(torch.arange(first).view(shape.key_heads, -1), several, 1)
    rest = torch.arange(first, first + 2 * shape.value_heads).view(shape.key_heads, -1)
    parts = (*places, *torch.split(rest, [group, group], 1))
    return torch.cat([part.flatten() for part in parts])
