"""
What a rank has of a model: its heads, its columns of the MLPs and experts, its tokens.

A rank's share is a model of transformers with fewer of all that, whose weights are cut out of the
checkpoint while they are read, so that a rank reads no more than it keeps.  What comes out of its
layers is a part of a sum, which the ranks add up.  Norms, routers and a vision tower are on all of
them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from cortex.errors import UnsupportedArchitecture
from cortex.neuron.engine.group import Group
from cortex.neuron.engine.narrow import layers_of, narrow
from cortex.neuron.engine.reading import slices_in

FAMILIES = (
    *("granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe", "qwen3_next"),
    *("qwen3_5_text", "qwen3_5_moe_text", "qwen3_vl_text", "qwen3_vl_moe_text"),
    *("qwen2_5_vl_text", "qwen2_vl_text"),
)  # whose sums are proven by our tests: of a model that fits no device nothing else tells
INSTEAD = "run it on one device, or with the harness vllm"
SHARED_OUT = (  # of a configuration, what each rank has its share of
    *("num_attention_heads", "intermediate_size", "moe_intermediate_size"),
    *("shared_expert_intermediate_size", "linear_num_key_heads", "linear_num_value_heads"),
)


@attrs.frozen
class Cut:
    """
    How a weight is cut.

    Attributes:
        dim: Along which; counted from the end.
        parts: How many things are behind each other, each of which is cut: all the same size, or
            ``attention`` or ``delta`` where they are queries, keys and values of that.
        is_once: Not cut, but for rank 0 alone: the others have zeros.
        is_turned: It lies the other way in the checkpoint, where *dim* counts; not in the share.
    """

    dim: int = 0
    parts: int | str = 1
    is_once: bool = False
    is_turned: bool = False


ROWS, COLUMNS, ONCE = Cut(-2), Cut(-1), Cut(is_once=True)
CUTS: tuple[tuple[str, Cut], ...] = (
    (r"embed_tokens\.weight|lm_head\.weight", Cut(-2, "tokens")),
    (r"q_proj\.weight", ROWS),
    (r"q_proj\.bias", COLUMNS),
    (r"[kv]_proj\.weight", Cut(-2, "keys")),
    (r"[kv]_proj\.bias", Cut(-1, "keys")),
    (r"qkv_proj\.weight", Cut(-2, "attention")),
    (r"(o_proj|out_proj|down_proj)\.weight", COLUMNS),
    (r"(o_proj|down_proj)\.bias", ONCE),
    (r"(gate_proj|up_proj)\.weight", ROWS),
    (r"(gate_proj|up_proj)\.bias", COLUMNS),
    (r"gate_up_proj\.weight|experts\.gate_up_proj", Cut(-2, 2)),
    (r"experts\.down_proj", COLUMNS),
    (r"in_proj_(z|b|a|qkvz|ba)\.weight", ROWS),
    (r"in_proj_qkv\.weight", Cut(-2, "delta")),
    (r"conv1d\.weight", Cut(-3, "delta")),
    (r"linear_attn\.(A_log|dt_bias)", COLUMNS),
)


class Shards:
    """
    The cuts of one model.

    Attributes:
        group: The ranks.
        config: Of a rank's share.
        tokens: Which ones are this rank's.

    Raises:
        UnsupportedArchitecture: It cannot be cut into so many.
    """

    def __init__(self, config: Any, group: Group) -> None:
        text = config.get_text_config()
        if text.model_type not in FAMILIES:
            raise UnsupportedArchitecture(
                f"models of type {text.model_type!r} cannot be split over devices; {INSTEAD}",
                details={"model_type": text.model_type, "supported": list(FAMILIES)},
            )
        self._text, self.group = text, group
        self.tokens = Tokens(group, text.vocab_size)
        self.config = deepcopy(config)
        small = self.config.get_text_config()
        small.head_dim = width_of(text)
        for name in SHARED_OUT:
            if (count := getattr(text, name, None)) is not None:
                setattr(small, name, self._share(name, count))
        small.num_key_value_heads = len(self._keys(keys_of(text)))
        small.vocab_size = self.tokens.most
        small.pad_token_id = None  # it may be another rank's

    def _share(self, name: str, count: int) -> int:
        share, rest = divmod(count, self.group.ranks)
        if rest:
            raise self._refused(f"its {name}, {count}, is no multiple of {self.group.ranks}")
        return share

    def _refused(self, why: str) -> UnsupportedArchitecture:
        could = ", ".join(map(str, splits(self._text)))
        instead = f"it can be over {could}; else {INSTEAD}" if could else INSTEAD
        return UnsupportedArchitecture(
            f"the model cannot be split over {self.group.ranks} devices: {why}; {instead}",
            details={"tensor_parallel": self.group.ranks},
        )

    def _keys(self, count: int) -> range:
        """Return which heads of keys and values this rank has; of few, several ranks have one."""
        rank, ranks = self.group.rank, self.group.ranks
        if count % ranks == 0:
            return range(rank * count // ranks, (rank + 1) * count // ranks)
        if ranks % count:
            raise self._refused(f"it has {count} heads of keys")
        return range(rank * count // ranks, rank * count // ranks + 1)

    def cut(self, name: str, weight: Any) -> Cuttings | Any:
        """
        Return this rank's share of a weight, which is read when that is indexed.

        Args:
            name: In the checkpoint.
            weight: A slice of safetensors, or a tensor.
        """
        if re.search(r"(^|\.)visual\.", name):
            return weight
        for pattern, cut in CUTS:
            if re.search(rf"(^|\.)({pattern})$", name):
                shape = list(weight.get_shape() if hasattr(weight, "get_shape") else weight.shape)
                is_turned = self._is_turned(name, shape)
                how = attrs.evolve(cut, dim=-3 - cut.dim, is_turned=True) if is_turned else cut
                return Cuttings(weight, shape, how, self._spans(how, shape), self.group.rank)
        return weight

    def _is_turned(self, name: str, shape: list[int]) -> bool:
        """Tell whether experts' weights lie as in Qwen3-VL's checkpoints, columns first."""
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return False
        inner, outer = self._text.moe_intermediate_size, self._text.hidden_size
        wanted = [outer, inner] if name.endswith("down_proj") else [2 * inner, outer]
        return shape[1:] == wanted[::-1] != wanted

    def _spans(self, cut: Cut, shape: list[int]) -> list[range]:
        """Return what is kept along the dimension of a cut."""
        if cut.is_once:
            return []
        size, width = shape[cut.dim], width_of(self._text)
        text, rank, ranks = self._text, self.group.rank, self.group.ranks
        queries, keys = text.num_attention_heads * width, keys_of(text)
        mine = self._keys(keys)
        of_keys = range(mine.start * width, mine.stop * width)
        match cut.parts:
            case "tokens":
                return [range(self.tokens.first, self.tokens.first + self.tokens.most)]
            case "keys":
                return [of_keys]
            case "attention":
                own = range(rank * queries // ranks, (rank + 1) * queries // ranks)
                behind = (queries, queries + keys * width)
                return [own, *(range(at + of_keys.start, at + of_keys.stop) for at in behind)]
            case "delta":
                key = text.linear_num_key_heads * text.linear_key_head_dim
                parts = [key, key, size - 2 * key]
            case int(count):
                parts = [size // count] * count
        starts = [sum(parts[:number]) for number in range(len(parts))]
        return [
            range(start + rank * part // ranks, start + (rank + 1) * part // ranks)
            for start, part in zip(starts, parts, strict=True)
        ]

    def read(self, folder: Path) -> dict[str, Any]:
        """Return this rank's share of a folder of safetensors, none of which is read yet."""
        return {name: self.cut(name, weight) for name, weight in slices_in(folder)}

    def of(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return this rank's share of weights."""
        return {name: self.cut(name, weight)[...] for name, weight in weights.items()}

    def model(
        self, weights: Mapping[str, Any], auto: Any = AutoModelForCausalLM, **more: Any
    ) -> tuple[Any, dict[str, Any]]:
        """
        Return a rank's share as a model of transformers, and what its loading said.

        Args:
            weights: By name, cut.
            auto: What of transformers' knows which kind of model it is.
            more: What transformers is told besides.
        """
        with torch.device("meta"):
            kind = type(auto.from_config(self.config))
        module, found = narrow(kind).from_pretrained(
            None, config=self.config, state_dict=weights, output_loading_info=True, **more
        )
        if wrong := found["mismatched_keys"]:
            raise self._refused(f"{min(wrong)} is not cut as it should be")
        return module, found

    def join(self, module: Any) -> None:
        """Have what *module* gives be that of the whole model, if all ranks run theirs."""
        module.get_input_embeddings().forward = self.tokens.embedded(
            module.get_input_embeddings().weight
        )
        module.get_output_embeddings().register_forward_hook(
            lambda _, __, out: self.tokens.whole(out[..., : self.tokens.count])
        )
        for layer in layers_of(module):
            mixer = getattr(layer, "linear_attn", None) or layer.self_attn
            last = mixer.out_proj if hasattr(mixer, "out_proj") else mixer.o_proj
            last.register_forward_hook(self._sum)
            getattr(layer.mlp, "down_proj", layer.mlp).register_forward_hook(self._sum)

    def _sum(self, _: Any, __: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return self.group.sum(out[0]), *out[1:]
        return self.group.sum(out)


class Cuttings:
    """A weight of which only a share is read, when it is indexed."""

    def __init__(
        self, weight: Any, shape: list[int], cut: Cut, spans: list[range], rank: int
    ) -> None:
        self._weight, self._shape, self._cut, self._spans = weight, shape, cut, spans
        self._rank = rank

    def __getitem__(self, _: Any) -> torch.Tensor:
        if self._cut.is_once:
            whole: torch.Tensor = self._weight[...]
            return whole if self._rank == 0 else torch.zeros_like(whole)
        dim = self._cut.dim % len(self._shape)
        before = (slice(None),) * dim
        size = self._shape[dim]
        pieces = [self._weight[(*before, slice(s.start, min(s.stop, size)))] for s in self._spans]
        piece = pieces[0].clone() if len(pieces) == 1 else torch.cat(pieces, dim)
        lacking = sum(map(len, self._spans)) - piece.shape[dim]
        if lacking:  # tokens the vocabulary does not have
            piece = functional.pad(piece.transpose(dim, -1), (0, lacking)).transpose(dim, -1)
        if self._cut.is_turned:
            piece = piece.transpose(-1, -2)
        return piece.contiguous()  # as kernels read it


class Tokens:
    """
    Which tokens of a vocabulary are a rank's.

    Attributes:
        first: Id of the first.
        count: How many there are.
        most: How many any rank has.
        size: Of the vocabulary.
    """

    def __init__(self, group: Group, size: int) -> None:
        self._group, self.size = group, size
        self.most = -(-size // group.ranks)
        self.first = group.rank * self.most
        self.count = min(self.most, size - self.first)
        if self.most * (group.ranks - 1) >= size:
            raise UnsupportedArchitecture(
                f"{size} tokens cannot be split over {group.ranks}; {INSTEAD}"
            )

    def embedded(self, weight: torch.Tensor) -> Any:
        """Return what gives the states of token ids, [... ids] int64, of whichever rank's."""

        def forward(ids: torch.Tensor) -> torch.Tensor:
            own = ids - self.first
            is_here = (own >= 0) & (own < self.count)
            states = functional.embedding(own.masked_fill(~is_here, 0), weight)
            return self._group.sum(states * is_here[..., None])

        return forward

    def whole(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits of all tokens, [..., vocabulary], from this rank's, [..., count]."""
        padded = functional.pad(logits, (0, self.most - self.count))
        every = self._group.gather(padded).movedim(0, -2).flatten(-2)
        return every[..., : self.size].contiguous()

    def picked(self, best: torch.Tensor) -> torch.Tensor:
        """
        Return the best token of all ranks': [rows] int64.

        Args:
            best: This rank's score and token of each row.  # [rows, 2] float64
        """
        every = self._group.gather(best)  # [ranks, rows, 2]
        winners = every[..., 0].argmax(0)
        return every[..., 1].gather(0, winners[None])[0].long()


def width_of(text: Any) -> int:
    """Return how wide a head is."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def splits(text: Any) -> list[int]:
    """Return over how many ranks a model of a family that can be split can be."""
    counts = [count for name in SHARED_OUT if (count := getattr(text, name, None)) is not None]
    keys = keys_of(text)
    return [
        ranks
        for ranks in range(2, text.num_attention_heads + 1)
        if not any(count % ranks for count in counts) and (not keys % ranks or not ranks % keys)
    ]


def keys_of(text: Any) -> int:
    """Return how many heads of keys and values there are."""
    return int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
