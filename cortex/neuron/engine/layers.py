"""What the layers of a decoder are made of, taken out of transformers' modules."""

from __future__ import annotations

from typing import Any

import attrs
import torch

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
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
    """

    frequencies: torch.Tensor
    scale: float = 1.0

    def turns(self, positions: torch.Tensor) -> torch.Tensor:
        """
        Return the cosines and sines tokens at *positions* are turned by, of all layers.

        Returns:
            # [2, tokens, width / 2] float32
        """
        angles = positions[:, None].float() * self.frequencies
        return torch.stack([angles.cos(), angles.sin()]) * self.scale


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
    return Rotary(frequencies=module.inv_freq.float(), scale=float(module.attention_scaling))
