"""
Multi-token prediction: a layer a checkpoint has besides its model's, which guesses further tokens.

Out of what the model made of a token, and the token that follows, it makes what the model would of
that one, roughly: the head makes logits of it, and with the token chosen from those it goes in for
the next guess (DeepSeek-V3 technical report, 2024, section 2.2).  Qwen3-Next's and Qwen3.5's is a
layer of attention, with a mixture of experts where the model's have one; its keys have pages of
their own.

What goes in is the embedding and, behind it, the model's state after its last norm; positions are
those of the token the state is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.nn import functional

from cortex.neuron.engine.cache import Cache, Heads
from cortex.neuron.engine.layers import Linear, Norm, norm_of
from cortex.neuron.engine.reading import slices_in
from cortex.neuron.engine.stack import Layer, Stack, layer_of
from cortex.neuron.engine.step import Shown, Step

PREFIX = "mtp."
FIRST = "layers.0."
OWN = ("fc.weight", "pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight")
TABLES = ("embed_tokens.weight", "lm_head.weight")  # the model's, where they are not its own
KNOWN = (*OWN, *TABLES, "norm.weight")


@attrs.frozen(kw_only=True, eq=False)
class Mtp:
    """
    One of them, of a model that *stack* runs; made by `mtp_of`.

    Attributes:
        layer: Its number in the cache, one above those of the model.
        heads: How it attends.
        used_bytes: Of its weights.
    """

    stack: Stack
    layer: int
    heads: Heads
    used_bytes: int
    _block: Layer
    _embedding: Norm
    _hidden: Norm
    _inward: Linear
    _norm: Norm
    _table: torch.Tensor | None = None
    _head: Linear | None = None

    def states(
        self,
        hidden: torch.Tensor,
        ids: torch.Tensor,
        step: Step,
        cache: Cache,
        shown: Shown | None = None,
    ) -> torch.Tensor:
        """
        Take in tokens of sequences, and return what the head takes, of each.

        Args:
            hidden: What the model made of them, after its last norm, or what this returned for the
                token before.  # [tokens, width]
            ids: The token that follows each.  # [tokens] int64
            step: Whose tokens they are, and where keys are; its own `Step.ids` and `Step.shown` are
                of no account.
            cache: Has pages for *layer*.
            shown: Which of *ids* are of pictures.

        Returns:
            # [tokens, width]
        """
        kernels = self.stack.kernels
        embedded = (
            self.stack.embed(ids) if self._table is None else functional.embedding(ids, self._table)
        )
        if shown is not None:
            embedded[shown.at] = shown.features[0]
        both = [kernels.norm(embedded, self._embedding), kernels.norm(hidden, self._hidden)]
        x = kernels.linear(torch.cat(both, -1), self._inward)
        self.stack.run(self._block, x, self.stack.turns(step), step, cache)
        return kernels.norm(x, self._norm)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits of the token after the one that followed: [tokens, vocabulary]."""
        return self.stack.scores(states, self._head or self.stack.head)


def mtp_of(folder: Path, module: Any, stack: Stack) -> tuple[Mtp | None, str]:
    """
    Return the one of a checkpoint, if it has one that can be run, else why there is none.

    Args:
        folder: Of the checkpoint.
        module: The model that was loaded from it.
        stack: Runs that.

    Raises:
        torch.OutOfMemoryError: The device has too little memory.
    """
    if stack.is_share:
        return None, "a model split over devices guesses none of its tokens"
    if not folder.is_dir():
        return None, "of a GGUF file only the model is read"
    try:
        return _read(folder, module, stack)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is: the model runs without
        return None, f"{type(error).__name__}: {error}"


def _read(folder: Path, module: Any, stack: Stack) -> tuple[Mtp | None, str]:
    slices = {
        name.removeprefix(PREFIX): weight
        for name, weight in slices_in(folder)
        if name.startswith(PREFIX)
    }
    if not slices:
        return None, "the checkpoint guesses no tokens"
    if others := sorted(
        name for name in slices if not name.startswith(FIRST) and name not in KNOWN
    ):
        return None, f"the checkpoint has {PREFIX}{others[0]}, which is not known"
    text = module.config.get_text_config()
    if getattr(text, "mtp_use_dedicated_embeddings", None) is False:
        for name in TABLES:
            slices.pop(name, None)
    weights = {name: weight[...] for name, weight in slices.items()}
    if narrow := sorted(name for name, weight in weights.items() if weight.dtype.itemsize == 1):
        return None, f"the checkpoint has {PREFIX}{narrow[0]} in eight bits"
    return _made(weights, module, stack), "it guesses tokens"


def _made(weights: Mapping[str, torch.Tensor], module: Any, stack: Stack) -> Mtp:
    block = _block(weights, module)
    to: dict[str, Any] = {"device": module.device, "dtype": module.dtype}
    embedding, hidden = (_normed_by(block.norm, weights[name].to(**to)) for name in OWN[1:])
    layer = layer_of(block.layers[0])
    own = {name: weights[name].to(**to) for name in TABLES if name in weights}
    head = own.get("lm_head.weight")
    number = int(module.config.get_text_config().num_hidden_layers)
    mixer = block.layers[0].self_attn
    return Mtp(
        layer=number,
        heads=Heads(
            queries=mixer.o_proj.in_features // mixer.head_dim,
            count=mixer.k_proj.out_features // mixer.head_dim,
            key=mixer.head_dim,
            value=mixer.head_dim,
            scale=mixer.scaling,
        ),
        used_bytes=sum(weight.numel() for weight in weights.values()) * module.dtype.itemsize,
        stack=stack,
        block=attrs.evolve(layer, number=number),
        embedding=embedding,
        hidden=hidden,
        inward=Linear(weight=weights["fc.weight"].to(**to)),
        norm=norm_of(block.norm),
        table=own.get("embed_tokens.weight"),
        head=None if head is None else Linear(weight=head),
    )


def _normed_by(like: Any, weight: torch.Tensor) -> Norm:
    """Return a norm of the kind that *like* is."""
    return attrs.evolve(norm_of(like), weight=weight)


def _block(weights: Mapping[str, torch.Tensor], module: Any) -> Any:
    """
    Return the layer and the norm behind it, as a model of transformers' without a vocabulary.

    So transformers puts experts together as it does for the model.

    Raises:
        ValueError: The checkpoint has not what belongs to such a layer.
    """
    body = getattr(module.model, "language_model", module.model)
    config = deepcopy(module.config.get_text_config())
    config.num_hidden_layers, config.layer_types = 1, ["full_attention"]
    config.vocab_size, config.pad_token_id = 1, None
    config.mlp_only_layers, config.decoder_sparse_step = [], 1  # where there are experts, it has
    told = {name: weight for name, weight in weights.items() if name not in {*OWN, *TABLES}}
    told["embed_tokens.weight"] = torch.zeros(1, config.hidden_size)
    made, found = type(body).from_pretrained(
        None, config=config, state_dict=told, output_loading_info=True, dtype=module.dtype
    )
    if wrong := sorted({*found["missing_keys"], *found["unexpected_keys"]}):
        raise ValueError(f"{PREFIX}{wrong[0]} is missing, or there for nothing")
    return made.eval().requires_grad_(False).to(module.device)
