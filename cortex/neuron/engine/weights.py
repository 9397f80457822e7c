"""Turns a checkpoint on disk into a transformers model on the device, and its text into data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import gguf
import torch
import transformers
from llguidance import LLTokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cortex.errors import CortexError, RepoFetchFailed, UnsupportedArchitecture
from cortex.neuron.engine import grammar
from cortex.neuron.engine.jobs import Load, TextFiles

STAGES = ("reading config", "reading tokenizer", "reading weights", "moving to device")


@attrs.frozen(kw_only=True)
class Weights:
    """
    A loaded model.

    Attributes:
        module: A causal language model of transformers, in eval mode, on the device.
        context: Tokens of prompt and answer together at most.
        vocabulary: How many logits it gives.
        end_tokens: Token ids that end an answer.
    """

    module: Any
    context: int
    vocabulary: int
    end_tokens: frozenset[int]
    used_bytes: int
    text: TextFiles

    @functools.cached_property
    def grammar_tokens(self) -> LLTokenizer:
        """What grammars are followed with; the first time it takes up to a second."""
        return grammar.tokenizer(self.text.tokenizer, self.vocabulary, self.end_tokens)


def load(job: Load, device: torch.device, report: Callable[[str, int, int], None]) -> Weights:
    """
    Load *job*'s checkpoint.

    Args:
        job: What to load.
        device: Where to.
        report: Called with stage, number and count of stages.

    Raises:
        CortexError: The checkpoint is damaged or of a kind we cannot run.
        torch.OutOfMemoryError: The device has too little memory.
    """
    transformers.utils.logging.disable_progress_bar()
    where, more = _from_pretrained(job.path)

    def stage(number: int) -> None:
        report(STAGES[number], number, len(STAGES))

    try:
        with _gguf_parsed_once():
            stage(0)
            config = AutoConfig.from_pretrained(where, **more)
            _check_architecture(config)
            stage(1)
            tokenizer = AutoTokenizer.from_pretrained(where, **more)
            stage(2)
            module, found = AutoModelForCausalLM.from_pretrained(
                where,
                **more,
                dtype=_dtype(job.dtype, config, device),
                config=config,
                output_loading_info=True,
            )
    except (CortexError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise RepoFetchFailed(f"cannot load {job.path}: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise RepoFetchFailed(f"{job.path} lacks weights: {', '.join(missing[:3])} ...")
    stage(3)
    module.eval().requires_grad_(False).to(device)
    generation = module.generation_config
    return Weights(
        module=module,
        context=_context(config, job.context),
        vocabulary=max(int(config.get_text_config().vocab_size), len(tokenizer)),
        end_tokens=_end_tokens(generation, tokenizer),
        used_bytes=sum(p.nbytes for p in module.parameters()),
        text=_text_files(tokenizer, generation),
    )


def read_text(path: str) -> TextFiles:
    """
    Read the text side of a checkpoint; touches no device.

    Raises:
        RepoFetchFailed: It cannot be read.
    """
    where, more = _from_pretrained(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **more)
        return _text_files(tokenizer, _generation(where))
    except CortexError:
        raise
    except Exception as error:
        raise RepoFetchFailed(f"cannot read the tokenizer of {path}: {error}") from error


def _generation(folder: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:  # there is none
        return GenerationConfig()


@contextmanager
def _gguf_parsed_once() -> Iterator[None]:
    """Let transformers, which parses a GGUF file's metadata at each turn, do it once."""
    parse = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(parse)
    try:
        yield
    finally:
        gguf.GGUFReader = parse


def _from_pretrained(path: str) -> tuple[str, dict[str, str]]:
    place = Path(path)
    return (path, {}) if place.is_dir() else (str(place.parent), {"gguf_file": place.name})


def _check_architecture(config: Any) -> None:
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.model_type not in known:
        raise UnsupportedArchitecture(
            f"the engine cannot run models of type {config.model_type!r}",
            details={"model_type": config.model_type, "supported": sorted(known)},
        )


def _dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    own = getattr(config, "dtype", None)
    return own if own in (torch.bfloat16, torch.float16) else torch.bfloat16


def _context(config: Any, asked: int | None) -> int:
    own = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 4096)
    return min(own, asked) if asked else own


def _end_tokens(generation: GenerationConfig, tokenizer: Any) -> frozenset[int]:
    ids = generation.eos_token_id
    several = ids if isinstance(ids, list) else [ids]
    return frozenset(i for i in [*several, tokenizer.eos_token_id] if i is not None)


def _text_files(tokenizer: Any, generation: GenerationConfig) -> TextFiles:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedArchitecture(
            f"the tokenizer {type(tokenizer).__name__} has no form the tokenizers library reads"
        )
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: getattr(tokenizer, name, None) for name in names}
    sampling = {}
    if generation.do_sample:
        sampling = {k: getattr(generation, k, None) for k in ("temperature", "top_p", "top_k")}
    return TextFiles(
        tokenizer=backend.to_str(),
        chat_template=template,
        special_tokens={name: str(token) for name, token in special.items() if token is not None},
        sampling={name: float(value) for name, value in sampling.items() if value is not None},
    )
