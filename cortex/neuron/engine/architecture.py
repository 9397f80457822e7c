"""Tells from a checkpoint's configuration whether the engine can run it; reads no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig

from cortex.errors import CortexError, RepoFetchFailed, UnsupportedArchitecture
from cortex.neuron.engine import sight, splitting
from cortex.neuron.engine.text_files import where_of


def check(path: str, ranks: int = 1) -> None:
    """
    Refuse a checkpoint, whose weights may be missing, that cannot be run; touches no device.

    Args:
        path: Of it.
        ranks: That are to run it together.

    Raises:
        UnsupportedArchitecture: It is of a kind the engine does not know, or cannot split so.
        RepoFetchFailed: Its configuration cannot be read.
    """
    try:
        where, more = where_of(path)
        config, embeds = read(where, more)
        if ranks > 1:
            sees = not more and sight.read(Path(where), config) is not None
            splitting.check(config, ranks, embeds=embeds, sees=sees)
    except CortexError:
        raise
    except Exception as error:
        raise RepoFetchFailed(f"cannot load {path}: {error}") from error


def read(where: str, more: Mapping[str, str]) -> tuple[Any, bool]:
    """
    Return the configuration of a checkpoint, and whether it is for vectors.

    Args:
        where: Its folder.
        more: What transformers is told besides: its GGUF file, if it is one.

    Raises:
        UnsupportedArchitecture: The engine cannot run it.
        Exception: Whatever transformers raises for what it cannot read.
    """
    folder = Path(where)
    try:
        config = AutoConfig.from_pretrained(where, **more)
    except ValueError:
        said = {} if more else json.loads((folder / "config.json").read_text("utf-8"))
        if (kind := said.get("model_type")) is None or kind in transformers.CONFIG_MAPPING:
            raise
        raise _unsupported(
            kind, _known(embeds=_embeds(folder, said.get("architectures")))
        ) from None
    embeds = not more and _embeds(folder, getattr(config, "architectures", None))
    known = _known(embeds=embeds)
    if not embeds and not more and sight.read(folder, config):
        return config, False
    if config.model_type not in known or (embeds and config.is_encoder_decoder):
        raise _unsupported(config.model_type, known)
    return config, embeds


def _embeds(folder: Path, architectures: list[str] | None) -> bool:
    """Tell whether a checkpoint is for vectors: its files or its architecture say so."""
    names = architectures or ()
    bare = any(name.endswith("Model") and not name.endswith("LMHeadModel") for name in names)
    return bare or (folder / "modules.json").is_file()


def _known(*, embeds: bool) -> list[str]:
    auto = transformers.models.auto.modeling_auto
    names = auto.MODEL_MAPPING_NAMES if embeds else auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted(names)


def _unsupported(kind: str, known: list[str]) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"the engine cannot run models of type {kind!r}",
        details={"model_type": kind, "supported": known},
    )
