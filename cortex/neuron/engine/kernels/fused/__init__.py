"""Every operation in Triton; what each computes `reference` says."""

from __future__ import annotations

from cortex.neuron.engine.kernels.fused.advance import advance
from cortex.neuron.engine.kernels.fused.attention import attend
from cortex.neuron.engine.kernels.fused.delta import delta
from cortex.neuron.engine.kernels.fused.dense import add, gated, linear, norm
from cortex.neuron.engine.kernels.fused.draw import best, pick
from cortex.neuron.engine.kernels.fused.rotary import rotate

__all__ = ["add", "advance", "attend", "best", "delta", "gated", "linear", "norm", "pick", "rotate"]
