"""Reads the text side of a checkpoint, tokenizer and chat template, into data for the neuron."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from cortex.errors import CortexError, RepoFetchFailed, UnsupportedArchitecture
from cortex.neuron.engine import sight
from cortex.neuron.engine.jobs import TextFiles
from cortex.neuron.engine.pictures import Sight

DRAWN = ("temperature", "top_p", "top_k", "min_p")  # what says nothing to who is greedy


def read(path: str) -> TextFiles:
    """
    Read the text side of a checkpoint; touches no device.

    Raises:
        RepoFetchFailed: It cannot be read.
    """
    where, more = where_of(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **more)
        sees = None if more else _sight(where)
        return text_files(where, tokenizer, _generation(where), sees)
    except CortexError:
        raise
    except Exception as error:
        raise RepoFetchFailed(f"cannot read the tokenizer of {path}: {error}") from error


def where_of(path: str) -> tuple[str, dict[str, str]]:
    """Return the folder of a checkpoint and what transformers is told besides."""
    place = Path(path)
    return (path, {}) if place.is_dir() else (str(place.parent), {"gguf_file": place.name})


def text_files(
    folder: str, tokenizer: Any, generation: GenerationConfig, sees: Sight | None = None
) -> TextFiles:
    """
    Return the text side of a checkpoint.

    Raises:
        UnsupportedArchitecture: Its tokenizer is of a kind we cannot hand over.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedArchitecture(
            f"the tokenizer {type(tokenizer).__name__} has no form the tokenizers library reads"
        )
    backend.no_truncation()
    backend.no_padding()
    if _lowers(Path(folder)):
        steps = [normalizers.Lowercase(), *filter(None, [backend.normalizer])]
        backend.normalizer = normalizers.Sequence(steps)
    template = tokenizer.chat_template
    named = template if isinstance(template, dict) else {"default": template}
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: getattr(tokenizer, name, None) for name in names}
    said = DRAWN if generation.do_sample else ()
    sampling = {k: getattr(generation, k, None) for k in (*said, "repetition_penalty")}
    for name, value in sampling.items():
        if value is not None and not math.isfinite(value):
            raise RepoFetchFailed(f"{folder}: {name} of generation_config.json is {value}")
    return TextFiles(
        tokenizer=backend.to_str(),
        chat_template=named.get("default"),
        tool_template=named.get("tool_use"),
        special_tokens={name: str(token) for name, token in special.items() if token is not None},
        sampling={name: float(value) for name, value in sampling.items() if value is not None},
        sight=sees,
    )


def _lowers(folder: Path) -> bool:
    """Tell whether sentence-transformers' files want letters lowered before the tokenizer."""
    files = folder.glob("sentence_*_config.json")
    return any(json.loads(file.read_text("utf-8")).get("do_lower_case") for file in files)


def _sight(folder: str) -> Sight | None:
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError):  # there is none, or of a kind that has a tokenizer alone
        return None
    return sight.read(Path(folder), config)


def _generation(folder: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:  # there is none
        return GenerationConfig()
