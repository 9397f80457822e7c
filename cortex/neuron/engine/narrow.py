"""
Models of transformers with fewer heads, each as wide as ever, which a rank's share has.

Most kinds take that width from their configuration; a few divide the model's width by the heads.
"""

from __future__ import annotations

from typing import Any

import torch


def layers_of(module: Any) -> Any:
    """Return the layers of a model, or of the part of it that makes text."""
    return getattr(module.model, "language_model", module.model).layers


def narrow(kind: Any) -> Any:
    """
    Return a kind of model whose heads are as wide as the configuration says.

    Some take that from the number of heads, of which a share has fewer.
    """

    class Narrow(kind):  # type: ignore[misc]
        def __init__(self, config: Any, *more: Any, **others: Any) -> None:
            super().__init__(config, *more, **others)
            text = config.get_text_config()
            for layer in layers_of(self):
                mixer = getattr(layer, "self_attn", None)
                if mixer is not None and mixer.head_dim != text.head_dim:
                    _heads(mixer, text)

    Narrow.__name__, Narrow.__module__ = kind.__name__, kind.__module__
    return Narrow


def _heads(mixer: Any, text: Any) -> None:
    width, size = text.head_dim, text.hidden_size
    queries, keys = (n * width for n in (text.num_attention_heads, text.num_key_value_heads))
    mixer.head_dim, mixer.scaling = width, width**-0.5
    for name, inward, outward in (
        *(("q_proj", size, queries), ("k_proj", size, keys)),
        *(("v_proj", size, keys), ("o_proj", queries, size)),
    ):
        bias = getattr(mixer, name).bias is not None
        setattr(mixer, name, torch.nn.Linear(inward, outward, bias=bias))
