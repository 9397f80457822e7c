"""Tells from a model's configuration alone whether several ranks can run it; reads no weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import attrs
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from cortex.errors import UnsupportedArchitecture
from cortex.neuron.engine.group import Group
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.shards import INSTEAD, Shards
from cortex.neuron.engine.stack import Stack


@attrs.frozen
class Seat:
    """A rank's place in a group that does not meet."""

    ranks: int
    rank: int = 0


def check(config: Any, ranks: int, *, embeds: bool, sees: bool) -> None:
    """
    Refuse a model that *ranks* ranks cannot run.

    Where there is no saying without weights, the load will tell.

    Raises:
        UnsupportedArchitecture: It is of a kind, or of numbers, that cannot be split.
    """
    refuse_vectors(embeds=embeds)
    shards = Shards(config, cast("Group", Seat(ranks)))
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    try:
        module = _outline(shards.config, auto)
    except Exception:  # noqa: BLE001 - whatever it is: it is about an outline
        return
    try:
        Stack(module, kernels_for(torch.device("cpu")), shards)
    except (AttributeError, TypeError) as error:
        raise UnsupportedArchitecture(
            f"the model cannot be split over devices: {error}; {INSTEAD}",
            details={"tensor_parallel": ranks},
        ) from error


def refuse_vectors(*, embeds: bool) -> None:
    """Refuse a model for vectors: none of them is split."""
    if embeds:
        raise UnsupportedArchitecture(
            "a model for embeddings cannot be split over devices; run it on one"
        )


def _outline(config: Any, auto: Any) -> Any:
    """Return a model of one layer of each kind, or few more, which has norms but no matrices."""
    config = deepcopy(config)
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["all"]
    text.num_hidden_layers = 1 + max(kinds.index(kind) for kind in kinds)
    if kinds != ["all"]:
        text.layer_types = kinds[: text.num_hidden_layers]
    with torch.device("meta"):
        module = auto.from_config(config)
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight.ndim == 1:
                setattr(part, name, torch.nn.Parameter(torch.ones(weight.shape)))
    body = getattr(module.model, "language_model", module.model)
    body.rotary_emb = type(body.rotary_emb)(text)
    return module
