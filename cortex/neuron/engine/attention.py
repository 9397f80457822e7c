"""
Attention over a paged cache, and over states, plugged into transformers' modules.

transformers hands the keyword `step` down to the attention function untouched, so one flattened
batch of decodes and chunks of prompts runs through a model's own forward.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.kernels import Kernels
from cortex.neuron.engine.layers import delta_of
from cortex.neuron.engine.step import Step

NAME = "cortex"


def forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the step tells who sees what
    *_: Any,
    step: Step,
    cache_pages: Cache,
    kernels: Kernels,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """
    Do as transformers' attention functions do; how a layer attends was recorded before.

    Args:
        module: The attention module.
        query: # [1, heads, tokens, width]
        key: # [1, kv_heads, tokens, width]
        value: # [1, kv_heads, tokens, value_width]
        attention_mask: None.
        step: Handed down from `Modules`, as is what follows.
        cache_pages: Of the model.
        kernels: Of the device.
    """
    pages = cache_pages.pages[module.layer_idx]
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    pages.write(step.slots, keys, values)
    return kernels.attend(queries, pages, step)[None], None


def replace(module: Any) -> None:
    """Have a layer of the gated delta rule computed by us, where a step is handed down to it."""
    layer, own = delta_of(module), type(module).forward

    def forward(
        hidden_states: torch.Tensor,
        *more: Any,
        step: Step | None = None,
        cache_pages: Cache | None = None,
        kernels: Kernels | None = None,
        **others: Any,
    ) -> torch.Tensor:
        if step is None or cache_pages is None or kernels is None:
            out: torch.Tensor = own(module, hidden_states, *more, **others)
            return out
        projected = kernels.linear(hidden_states[0], layer.inward)
        state = cache_pages.states.layers[module.layer_idx]
        return kernels.linear(kernels.delta(projected, layer, state, step), layer.out)[None]

    module.forward = forward


AttentionInterface.register(NAME, forward)
