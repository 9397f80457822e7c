"""
Tier 1: decoders built like Llama, run by us over transformers' weights.

In some, layers of linear attention stand between those of attention, whose output has a gate.

What reads the same input is one layer, what follows on another is one kernel where the device has
such.  A model is taken for such a decoder by the names of its modules; whether it is one, the proof
at load tells.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch.nn.functional import silu

from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.kernels import Kernels
from cortex.neuron.engine.layers import (
    Delta,
    Linear,
    Norm,
    delta_of,
    fuse,
    is_delta,
    norm_of,
    rotary_of,
)
from cortex.neuron.engine.shards import Shards
from cortex.neuron.engine.step import Step

KNOWN_NORMS = {"input_layernorm", "post_attention_layernorm"}


@attrs.frozen(kw_only=True, eq=False)
class Attention:
    """
    The first half of a layer.

    Attributes:
        gated: How many heads come of *qkv* with a gate of their output behind them; 0 is none.
    """

    norm: Norm
    qkv: Linear
    norms: tuple[Norm, Norm] | None
    out: Linear
    gated: int = 0


@attrs.frozen(kw_only=True, eq=False)
class Mlp:
    """The second half."""

    norm: Norm
    gate_up: Linear
    down: Linear


@attrs.frozen(kw_only=True, eq=False)
class Experts:
    """The second half where it is a mixture of experts: transformers' module, as it is."""

    norm: Norm
    module: Any


@attrs.frozen(kw_only=True, eq=False)
class Layer:
    """Both halves of a layer, and its number in the cache."""

    number: int
    first: Attention | Delta
    mlp: Mlp | Experts


class Stack:
    """
    Runs *module*, a causal language model, or a rank's share of one.

    Attributes:
        kernels: It is run with.
        embed: Gives the embeddings of token ids.
        head: Gives logits, of this rank's tokens.

    Raises:
        AttributeError: It has none of the modules that are looked for.
        TypeError: One of them is not what it is looked for.
    """

    name = "fused"

    def __init__(self, module: Any, kernels: Kernels, shards: Shards | None = None) -> None:
        config = module.config.get_text_config()
        body = getattr(module.model, "language_model", module.model)
        self.kernels = kernels
        self.embed = module.get_input_embeddings()
        self._embed_factor = getattr(config, "embedding_multiplier", 1.0)
        self._factor = getattr(config, "residual_multiplier", 1.0)
        self._divisor = getattr(config, "logits_scaling", 1.0)
        self._rotary = rotary_of(body.rotary_emb)
        self._modules = body.layers
        self._layers = [layer_of(layer) for layer in body.layers]
        self._norm = norm_of(body.norm)
        self.head = fuse(module.get_output_embeddings())
        self._shards = shards
        if shards is not None:
            mine = self.head.weight[: shards.tokens.count]
            self.head = attrs.evolve(self.head, weight=mine)

    def quantise(self, dtype: torch.dtype) -> int:
        """
        Keep the weights of all layers in eight bits, those of embedding and head as they are.

        The module loses them, so that nothing is there twice.

        Returns:
            Bytes that are free for it.
        """
        before = self.step_bytes
        for place, layer in enumerate(self._layers):
            halves = {"first": _quantised(layer.first, dtype), "mlp": _quantised(layer.mlp, dtype)}
            self._layers[place] = attrs.evolve(layer, **halves)
            _empty(_mixer(self._modules[place]))
            if isinstance(layer.mlp, Mlp):
                _empty(self._modules[place].mlp)
        return before - self.step_bytes

    @property
    def is_share(self) -> bool:
        """Whether other ranks have the rest of the model."""
        return self._shards is not None

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that any step reads, experts apart."""
        linears = [self.head]
        for layer in self._layers:
            first, mlp = layer.first, layer.mlp
            linears += [first.qkv if isinstance(first, Attention) else first.inward, first.out]
            linears += [mlp.gate_up, mlp.down] if isinstance(mlp, Mlp) else []
        return sum(linear.weight.nbytes for linear in linears)

    def logits(self, step: Step, cache: Cache) -> torch.Tensor:
        """Return the logits of the tokens that are wanted: [wanted, vocabulary]."""
        logits = self.part(step, cache)
        return logits if self._shards is None else self._shards.tokens.whole(logits)

    def part(self, step: Step, cache: Cache) -> torch.Tensor:
        """Return of those what this rank has: [wanted, tokens]."""
        x = self._through(step, cache)
        wanted = x if step.wanted is None else x[step.wanted]
        return self.scores(wanted, self.head, self._norm)

    def with_states(self, step: Step, cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return the logits of the tokens that are wanted, and what the head takes, of all tokens.

        Returns:
            # [wanted, vocabulary], [tokens, width]
        """
        states = self.kernels.norm(self._through(step, cache), self._norm)
        logits = self.scores(states if step.wanted is None else states[step.wanted], self.head)
        return logits if self._shards is None else self._shards.tokens.whole(logits), states

    def scores(self, x: torch.Tensor, head: Linear, norm: Norm | None = None) -> torch.Tensor:
        """Return what a head makes of states, normed before: [tokens, out]."""
        logits = self.kernels.linear(x, head, norm)
        return logits if self._divisor == 1 else logits / self._divisor

    def turns(self, step: Step) -> torch.Tensor:
        """Return what the tokens of a step are turned by; see `Rotary.turns`."""
        return self._rotary.turns(step.positions if step.places is None else step.places)

    def run(
        self, layer: Layer, x: torch.Tensor, turns: torch.Tensor, step: Step, cache: Cache
    ) -> None:
        """Add what a layer makes of its input to that, [tokens, width]."""
        kernels, first, mlp = self.kernels, layer.first, layer.mlp
        if isinstance(first, Attention):
            pages = cache.pages[layer.number]
            projected = kernels.linear(x, first.qkv, first.norm)
            queries = kernels.rotate(projected, turns, first.norms, pages, step)
            mixed = kernels.attend(queries, pages, step).flatten(1)
            if first.gated:
                mixed *= _gates(projected, first.gated, mixed.shape[1]).sigmoid()
        else:
            projected = kernels.linear(x, first.inward, first.norm)
            mixed = kernels.delta(projected, first, cache.states.layers[layer.number], step)
        self._add(mixed, first.out, x)
        if isinstance(mlp, Mlp):
            self._add(kernels.gated(x, mlp.gate_up, mlp.norm), mlp.down, x)
        else:
            x.add_(_answer(mlp.module(kernels.norm(x, mlp.norm)[None])), alpha=self._factor)

    def _through(self, step: Step, cache: Cache) -> torch.Tensor:
        """Return what all layers make of the tokens of a step: [tokens, width]."""
        x: torch.Tensor = self.embed(step.ids)  # ours, and added to from here on
        if self._embed_factor != 1:
            x *= self._embed_factor
        if step.shown is not None:
            x[step.shown.at] = step.shown.features[0]
        turns = self.turns(step)
        for depth, layer in enumerate(self._layers, 1):
            self.run(layer, x, turns, step, cache)
            if step.shown is not None and depth < len(step.shown.features):
                x[step.shown.at] += step.shown.features[depth]
        return x

    def _add(self, x: torch.Tensor, layer: Linear, residual: torch.Tensor) -> None:
        """Add what *layer*, or all ranks' together, makes of *x* to *residual*."""
        if self._shards is None:
            self.kernels.add(x, layer, residual, self._factor)
        else:
            self._shards.group.add(self.kernels.linear(x, layer), residual, self._factor)


def _mixer(layer: Any) -> Any:
    """Return the module of a layer's first half."""
    return layer.linear_attn if hasattr(layer, "linear_attn") else layer.self_attn


def layer_of(layer: Any) -> Layer:
    """
    Return a layer of a decoder.

    Raises:
        AttributeError: It has none of the modules that are looked for.
        TypeError: One of them is not what it is looked for.
    """
    module = _mixer(layer)
    if is_delta(module):
        first: Attention | Delta = delta_of(module, norm_of(layer.input_layernorm))
    else:
        first = _attention(layer)
    return Layer(number=module.layer_idx, first=first, mlp=_mlp(layer))


def _gates(projected: torch.Tensor, heads: int, width: int) -> torch.Tensor:
    """Return what stands behind the queries of each head: [tokens, width]."""
    queries = torch.unflatten(projected[:, : 2 * width], 1, (heads, 2, -1))
    return queries[:, :, 1].flatten(1)


def _attention(layer: Any) -> Attention:
    module = layer.self_attn
    if hasattr(module, "qkv_proj"):
        qkv = fuse(module.qkv_proj)
    else:
        qkv = fuse(module.q_proj, module.k_proj, module.v_proj)
    width = module.head_dim
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    found = [norm_of(norm) for norm in norms if norm is not None]
    if any(norm.weight.shape != (width,) for norm in found):
        raise TypeError("queries and keys are not normed head by head")
    extra = {name for name, _ in layer.named_children() if "norm" in name} - KNOWN_NORMS
    if extra:
        raise TypeError(f"it has norms this body does not know: {', '.join(sorted(extra))}")
    # a gate of the output comes with the queries where they are twice as wide as what is read
    heads = module.o_proj.in_features // width
    wide = getattr(getattr(module, "q_proj", None), "out_features", 0)
    return Attention(
        norm=norm_of(layer.input_layernorm),
        qkv=qkv,
        norms=(found[0], found[1]) if found else None,
        out=fuse(module.o_proj),
        gated=heads if wide == 2 * heads * width else 0,
    )


def _mlp(layer: Any) -> Mlp | Experts:
    module, norm = layer.mlp, norm_of(layer.post_attention_layernorm)
    if not hasattr(module, "down_proj"):
        return Experts(norm=norm, module=module)
    act = getattr(module, "act_fn", None) or module.activation_fn
    tried = torch.linspace(-3, 3, 7)
    if not torch.allclose(act(tried), silu(tried)):
        raise TypeError("its activation is not silu")
    if hasattr(module, "gate_up_proj"):
        gate_up = fuse(module.gate_up_proj)
    else:
        gate_up = fuse(module.gate_proj, module.up_proj)
    return Mlp(norm=norm, gate_up=gate_up, down=fuse(module.down_proj))


def _quantised(half: Any, dtype: torch.dtype) -> Any:
    linears = {
        name: value.quantised(dtype)
        for name, value in attrs.asdict(half, recurse=False).items()
        if isinstance(value, Linear)
    }
    return attrs.evolve(half, **linears)


def _empty(module: Any) -> None:
    for linear in module.modules():
        if isinstance(linear, torch.nn.Linear):
            linear.weight = torch.nn.Parameter(linear.weight.new_empty(0), requires_grad=False)


def _answer(out: Any) -> torch.Tensor:
    """Return what a mixture of experts answers; some add what their router thought."""
    states: torch.Tensor = (out[0] if isinstance(out, tuple) else out)[0]
    return states
