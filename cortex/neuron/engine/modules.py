"""
Tier 0: a model of transformers run as it is, over our steps and cache.

Any decoder whose attention goes through transformers' attention interface can be run this way, and
if some layers are of the gated delta rule, those are ours; it is right, and as fast as its modules
are.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from cortex.neuron.engine import attention
from cortex.neuron.engine.cache import Cache, Heads
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.layers import decoder_of, is_delta, shape_of
from cortex.neuron.engine.states import Recurrence
from cortex.neuron.engine.step import Step

RECORDER = "cortex-recorder"


class Modules:
    """Runs *module*, a causal language model whose attention is ours from now on."""

    name = "modules"

    def __init__(self, module: Any) -> None:
        self._decoder = decoder_of(module)
        self._decoder.set_attn_implementation(attention.NAME)
        for layer in filter(is_delta, module.modules()):
            attention.replace(layer)
        self._module = module
        self._kernels = kernels_for(module.device)

    def logits(self, step: Step, cache: Cache) -> torch.Tensor:
        """Return the logits of the tokens that are wanted: [wanted, vocabulary]."""
        if step.places is not None:
            return self._seeing(step, step.places, cache)
        out = self._module(
            input_ids=step.ids[None],
            position_ids=step.positions[None],
            use_cache=False,
            logits_to_keep=0 if step.wanted is None else step.wanted,
            step=step,
            cache_pages=cache,
            kernels=self._kernels,
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    def _seeing(self, step: Step, places: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Do so for a model that sees; what its tower saw is there already."""
        embeddings, more = self._module.get_input_embeddings()(step.ids), {}
        if step.shown is not None:
            embeddings[step.shown.at] = step.shown.features[0]
            if len(step.shown.features) > 1:
                mask = torch.zeros_like(step.ids, dtype=torch.bool)
                mask[step.shown.at] = True
                deep = [*step.shown.features[1:]]
                more = {"visual_pos_masks": mask[None], "deepstack_visual_embeds": deep}
        out = self._decoder(
            inputs_embeds=embeddings[None],
            position_ids=places[..., None, :],
            use_cache=False,
            step=step,
            cache_pages=cache,
            kernels=self._kernels,
            **more,
        )
        states = out.last_hidden_state[0]
        logits: torch.Tensor = self._module.get_output_embeddings()(
            states if step.wanted is None else states[step.wanted]
        )
        return logits

    part = logits


def record(module: Any, ids: torch.Tensor) -> dict[int, Heads]:
    """
    Return how each layer attends, by running *module* over some tokens.

    Args:
        module: A causal language model; its attention is another one from now on.
        ids: # [tokens] int64
    """
    heads: dict[int, Heads] = {}
    decoder_of(module).set_attn_implementation(RECORDER)
    module(input_ids=ids[None], use_cache=False, heads=heads)
    return heads


def recurrences(module: Any) -> dict[int, Recurrence]:
    """Return the shapes of a model's layers of linear attention."""
    return {layer.layer_idx: shape_of(layer) for layer in filter(is_delta, module.modules())}


def recording(  # noqa: PLR0917 - as transformers calls it
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    heads: dict[int, Heads],
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Do as torch's attention does, more or less, and note what it is given."""
    heads[module.layer_idx] = Heads(
        queries=query.shape[1],
        count=key.shape[1],
        key=key.shape[3],
        value=value.shape[3],
        scale=scaling if scaling is not None else query.shape[3] ** -0.5,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    attended = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **more
    )
    out: torch.Tensor = attended[0]
    return out, None


AttentionInterface.register(RECORDER, recording)
AttentionMaskInterface.register(RECORDER, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
