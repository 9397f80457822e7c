"""
The measured memory of models, kept in a small file across restarts.

A size counts for a model as it was made when it was measured: from other weights, or with another
context, it takes another amount.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cortex.config.mistakes import cause
from cortex.config.schema import Catalogue
from cortex.fleet.model import ModelSpec

log = logging.getLogger(__name__)


class Size(msgspec.Struct, frozen=True):
    """What a model took, and of what it was made."""

    need_mb: int
    made_of: str


class Kept(msgspec.Struct):
    """The file."""

    models: dict[str, Size] = {}


def made_of(spec: ModelSpec) -> str:
    """Return what the memory of a model depends on."""
    parts = (spec.harness, spec.source, spec.quant, spec.context, spec.min_devices)
    return " ".join("-" if part is None else str(part) for part in parts)


def forget(known: dict[str, Any], specs: Mapping[str, ModelSpec], catalogue: Catalogue) -> None:
    """Forget what is *known* of models that *catalogue* has made otherwise than *specs*."""
    for spec in catalogue.models:
        if made_of(spec) != made_of(specs.get(spec.id, ModelSpec(id=spec.id))):
            known.pop(spec.id, None)


class Sizes:
    """The file at *path*; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written: dict[str, Size] = {}
        self._told: tuple[Mapping[str, int], Mapping[str, ModelSpec]] = {}, {}

    def are_news(self, needs_mb: Mapping[str, int], specs: Mapping[str, ModelSpec]) -> bool:
        """Tell whether anything may have changed since the last `write`, if there is a file."""
        return self._path is not None and (needs_mb, specs) != self._told

    def read(self, specs: Mapping[str, ModelSpec]) -> dict[str, int]:
        """Return what is known of models, as *specs* has them made; a bad file is no file."""
        if self._path is None:
            return {}
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s: %s; sizes are learned again", self._path, cause(error, self._path))
            return {}
        self._written = kept.models
        return {
            model: size.need_mb
            for model, size in kept.models.items()
            if size.made_of == made_of(specs.get(model, ModelSpec(id=model)))
        }

    def write(self, needs_mb: Mapping[str, int], specs: Mapping[str, ModelSpec]) -> None:
        """Keep *needs_mb*, if it is not what is kept; whole or not at all."""
        now = {
            model: Size(mb, made_of(specs.get(model, ModelSpec(id=model))))
            for model, mb in sorted(needs_mb.items())
        }
        self._told = dict(needs_mb), specs
        if self._path is None or now == self._written:
            return
        self._written = now  # a disk that fails is told of once a change
        try:
            put(self._path, msgspec.json.encode(Kept(now)))
        except OSError as error:
            log.warning(
                "%s: %s; sizes are learned again after a restart",
                self._path,
                cause(error, self._path),
            )


def put(path: Path, data: bytes) -> None:
    """Have *data* in the file at *path*, whole or not at all; raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # before it gets its name: the machine may go down
    fresh.replace(path)
