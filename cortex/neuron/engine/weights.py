"""Turns a checkpoint on disk into a transformers model on the device."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import gguf
import numpy as np
import torch
import transformers
from llguidance import LLTokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)

from cortex.errors import CortexError, RepoFetchFailed
from cortex.neuron.engine import architecture, grammar, pooling, sight, splitting
from cortex.neuron.engine.group import Group
from cortex.neuron.engine.jobs import Load, TextFiles
from cortex.neuron.engine.pictures import Sight
from cortex.neuron.engine.pooling import Pooling
from cortex.neuron.engine.reading import watched
from cortex.neuron.engine.shards import Shards
from cortex.neuron.engine.text_files import text_files, where_of
from cortex.neuron.engine.tower import Tower

STAGES = ("reading config", "reading tokenizer", "reading weights", "moving to device")


@attrs.frozen(kw_only=True)
class Weights:
    """
    A loaded model.

    Attributes:
        module: Of transformers, in eval mode, on the device: a causal language model, or, if there
            is a *pooling*, one that ends in states.
        context: Tokens of prompt and answer together at most.
        vocabulary: How many logits it gives, or token ids it takes.
        end_tokens: Token ids that end an answer.
        tower: What it sees with, if it sees; a part of *module*.
        shards: How it was cut, if it is a share of a model that several ranks run.
    """

    module: Any
    context: int
    vocabulary: int
    end_tokens: frozenset[int]
    used_bytes: int
    text: TextFiles
    pooling: Pooling | None = None
    tower: Tower | None = None
    shards: Shards | None = None

    @functools.cached_property
    def known(self) -> int:
        """How many token ids it has states for; its tokenizer may have more."""
        if self.shards is not None:
            return self.shards.tokens.size
        return len(self.module.get_input_embeddings().weight)

    @functools.cached_property
    def grammar_tokens(self) -> LLTokenizer:
        """What grammars are followed with; the first time it takes up to a second."""
        return grammar.tokenizer(self.text.tokenizer, self.vocabulary, self.end_tokens)


def load(
    job: Load,
    device: torch.device,
    report: Callable[[str, int, int], None],
    group: Group | None = None,
) -> Weights:
    """
    Load *job*'s checkpoint.

    Args:
        job: What to load.
        device: Where to.
        report: Called with a stage, and where the weights are read with bytes done and of all.
        group: Of ranks that run it together; this one's share is loaded.

    Raises:
        CortexError: The checkpoint is damaged or of a kind we cannot run.
        torch.OutOfMemoryError: The device has too little memory.
    """
    transformers.utils.logging.disable_progress_bar()
    where, file = where_of(job.path)
    more: dict[str, Any] = {**file}

    def stage(number: int, done: int = 0, total: int = 0) -> None:
        report(STAGES[number], done, total)

    try:
        with _gguf_parsed_once(), watched(Path(job.path), functools.partial(stage, 2)):
            stage(0)
            config, embeds = architecture.read(where, more)
            shards = None if group is None else _shards(config, group, embeds=embeds)
            after = pooling.read(Path(where), config.hidden_size, device) if embeds else None
            stage(1)
            tokenizer = AutoTokenizer.from_pretrained(where, **more)
            stage(2)
            sees = None if embeds or file else sight.read(Path(where), config)
            more |= {"dtype": _dtype(job.dtype, config, device), "config": config}
            module, found = _module(_kind(sees, embeds=embeds), shards, where, more)
    except (CortexError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise RepoFetchFailed(f"cannot load {job.path}: {error}") from error
    _refuse_gaps(found, job.path)
    stage(3)
    module.eval().requires_grad_(False).to(device)
    if shards is not None:
        shards.join(module)
    generation = getattr(module, "generation_config", None) or GenerationConfig()
    return Weights(
        module=module,
        context=min(_limits(Path(where), config, tokenizer, job.context, embeds=embeds)),
        vocabulary=max(int(config.get_text_config().vocab_size), len(tokenizer)),
        end_tokens=_end_tokens(generation, tokenizer),
        used_bytes=sum(p.nbytes for p in module.parameters()),
        text=text_files(where, tokenizer, generation, sees),
        pooling=after,
        tower=None if sees is None else Tower(module, sees, sight.shades(Path(where))),
        shards=shards,
    )


def _shards(config: Any, group: Group, *, embeds: bool) -> Shards:
    splitting.refuse_vectors(embeds=embeds)
    return Shards(config, group)


def _refuse_gaps(found: dict[str, Any], path: str) -> None:
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise RepoFetchFailed(f"{path} lacks weights: {', '.join(missing[:3])} ...")


def _kind(sees: Sight | None, *, embeds: bool) -> Any:
    if embeds:
        return AutoModel
    return AutoModelForCausalLM if sees is None else AutoModelForImageTextToText


def _module(kind: Any, shards: Shards | None, where: str, more: dict[str, Any]) -> tuple[Any, Any]:
    """
    Return a model, or a rank's share, and what its loading said.

    For a share a GGUF file is read whole, into the host's memory.
    """
    if shards is None:
        module, found = kind.from_pretrained(where, **more, output_loading_info=True)
        return module, found
    if "gguf_file" not in more:
        module, found = shards.model(shards.read(Path(where)), kind, dtype=more["dtype"])
        with suppress(OSError):  # there is none
            module.generation_config = GenerationConfig.from_pretrained(where)
        return module, found
    whole = kind.from_pretrained(where, **more)
    module, found = shards.model(shards.of(whole.state_dict()), dtype=more["dtype"])
    module.generation_config = whole.generation_config
    return module, found


@contextmanager
def _gguf_parsed_once() -> Iterator[None]:
    """
    Let transformers do once what it does again and again with a GGUF file.

    It parses the metadata at each turn, and makes the map of all names of tensors for each module
    of the model, which takes longer than all else.
    """
    theirs, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(_Reader), functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = theirs, names


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """Cuts the vocabulary out of a plain array; out of a mapped file each cut takes longer."""

    @property
    def data(self) -> np.ndarray[Any, Any]:
        return self._data

    @data.setter
    def data(self, mapped: np.memmap[Any, Any]) -> None:
        self._data = mapped.view(np.ndarray)


def _dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    own = getattr(config, "dtype", None)
    return own if own in (torch.bfloat16, torch.float16) else torch.bfloat16


def _limits(
    folder: Path, config: Any, tokenizer: Any, asked: int | None, *, embeds: bool
) -> Iterator[int]:
    """Yield what bounds the context, in tokens."""
    yield int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 4096)
    if asked is not None:
        yield asked
    if embeds:
        yield int(tokenizer.model_max_length)  # a huge number where nobody said
        for file in folder.glob("sentence_*_config.json"):
            if length := json.loads(file.read_text("utf-8")).get("max_seq_length"):
                yield int(length)


def _end_tokens(generation: GenerationConfig, tokenizer: Any) -> frozenset[int]:
    ids = generation.eos_token_id
    several = ids if isinstance(ids, list) else [ids]
    return frozenset(i for i in [*several, tokenizer.eos_token_id] if i is not None)
