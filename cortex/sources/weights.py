"""
Tells which files of a listing are a model's weights.

A listing is of relative paths with ``/`` between their parts: what a folder, a wheel or a
repository holds.  The sources differ in how they get one and the files, and in nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import attrs

from cortex.errors import EmptyRepo, QuantNotFound
from cortex.fleet.model import Checkpoint

_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")
# A module of sentence-transformers that follows the model, in a folder of its own.
_MODULE = re.compile(r"\d+_\w+/(config\.json|model\.safetensors)")
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_TAG = re.compile(
    r"(?<![a-z0-9])((?:ud-)?(?:i?q|tq)\d+(?:_[a-z0-9]+)*|mxfp4(?:_[a-z0-9]+)*|bf16|fp?16|fp?32)"
    r"(?![a-z0-9])",
    re.IGNORECASE,
)


@attrs.frozen(kw_only=True)
class Selection:
    """
    Files that make up one checkpoint.

    Attributes:
        weights: The parts in order; of a GGUF the first is the one to open; empty if only the text
            side of a model is wanted.
        beside: What a model needs next to its safetensors: config, tokenizer, chat template, and
            for embeddings the modules that follow it, in folders of their own.
    """

    format: Literal["gguf", "safetensors"]
    weights: tuple[str, ...]
    beside: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All files, the weights last: where those are, the others are too."""
        return self.beside + self.weights

    @property
    def text(self) -> Selection:
        """What tokenizer and chat template are read from; of a GGUF that is all of it."""
        return self if self.format == "gguf" else attrs.evolve(self, weights=())

    def checkpoint(self, root: Path) -> Checkpoint:
        """Return the checkpoint whose listing was made in the folder *root*."""
        first = root / (self.weights or self.beside)[0]
        return Checkpoint(
            path=first if self.format == "gguf" else first.parent,
            format=self.format,
            size_bytes=sum((root / name).stat().st_size for name in self.weights),
        )


@attrs.frozen(kw_only=True)
class Listing:
    """The checkpoints a place offers: GGUF files by tag, and at most one set of safetensors."""

    ggufs: Mapping[str, Selection]
    tensors: Selection | None

    @classmethod
    def of(cls, names: Iterable[str]) -> Listing:
        ordered = sorted(names, key=lambda name: (name.count("/"), name))
        return cls(ggufs=_ggufs(ordered), tensors=_tensors(ordered))

    @property
    def files(self) -> Iterator[tuple[str, str]]:
        """Every file of every checkpoint, and its path within its checkpoint."""
        for selection in self.ggufs.values():
            for name in selection.files:
                yield name, name.rpartition("/")[2]
        if self.tensors is not None:
            start = self.tensors.weights[0].rfind("/") + 1
            for name in self.tensors.files:
                yield name, name[start:]

    def choose(self, quant: str | None, place: str) -> Selection:
        """
        Pick a checkpoint: the GGUF of tag *quant*, else the safetensors, else the only GGUF.

        Args:
            quant: A tag such as ``Q4_K_M`` in any case, or None.
            place: What was listed, for errors.

        Raises:
            EmptyRepo: There are no weights, or not all parts of them.
            QuantNotFound: None has this tag, or there are several and no tag was given.
        """
        if self.tensors is None and not self.ggufs:
            raise EmptyRepo(
                f"{place} holds no weights", hint="a .gguf, or config.json and *.safetensors"
            )
        if self.tensors and quant is None:
            return _whole(self.tensors, place)
        if quant is None and len(self.ggufs) == 1:
            return _whole(next(iter(self.ggufs.values())), place)
        wanted = (quant or "").upper()
        if tagged := self.ggufs.get(wanted) or self.ggufs.get(f"UD-{wanted}"):
            return _whole(tagged, place)
        raise self._not_found(quant, place)

    def _not_found(self, quant: str | None, place: str) -> QuantNotFound:
        available = sorted(self.ggufs)
        near = get_close_matches((quant or "").upper(), available, n=1, cutoff=0.0) if quant else []
        details = {
            "requested": quant,
            "available": available,
            "nearest": near[0] if near else None,
        }
        if quant is None:
            said, hint = f"{place} has several quants, choose one", ", ".join(available)
        elif available:
            said = f"{place} has no gguf of quant {quant!r}"
            hint = f"nearest is {near[0]}; available: {', '.join(available)}"
        else:
            said = f"{place} has no gguf of quant {quant!r}, it has safetensors"
            hint = "leave quant out"
        return QuantNotFound(said, hint=hint, details=details)


def stem_of(name: str) -> str:
    """Return a GGUF's name without its suffix and part number: what its parts share."""
    return _PART.sub("", name[: -len(".gguf")])


def tag_of(stem: str) -> str | None:
    """Return the quantisation the stem of a GGUF tells, in capitals: ``Q4_K_M``."""
    found = _TAG.findall(stem)
    return found[-1].upper() if found else None


def _ggufs(names: list[str]) -> dict[str, Selection]:
    """Group the parts of each GGUF; of two with one tag, the one higher up or first by name."""
    groups: dict[str, list[str]] = {}
    for name in names:
        base = name.rpartition("/")[2].lower()
        if base.endswith(".gguf") and not base.startswith(("mmproj", "imatrix")):
            groups.setdefault(stem_of(name), []).append(name)
    found: dict[str, Selection] = {}
    for stem, parts in groups.items():
        tag = tag_of(stem) or stem.rpartition("/")[2].upper()
        found.setdefault(tag, Selection(format="gguf", weights=tuple(parts)))
    return found


def _tensors(names: list[str]) -> Selection | None:
    """Return the safetensors highest up that have a config.json beside them."""
    for config in names:
        folder, _, base = config.rpartition("/")
        if base != "config.json":
            continue
        here = [name for name in names if name.rpartition("/")[0] == folder]
        tensors = [name for name in here if name.endswith(".safetensors")]
        if weights := _without_duplicates(tensors):
            beside = [name for name in here if name.endswith(_BESIDE)]
            if any(name.endswith("modules.json") for name in beside):
                start = len(folder) + bool(folder)
                below = [name for name in names if name.startswith(folder)]
                beside += [name for name in below if _MODULE.fullmatch(name[start:])]
            return Selection(format="safetensors", weights=tuple(weights), beside=tuple(beside))
    return None


def _without_duplicates(tensors: list[str]) -> list[str]:
    """Drop what repeats the weights in another layout, in the order transformers looks for them."""
    base = {name: name.rpartition("/")[2].removesuffix(".safetensors") for name in tensors}
    single = [name for name in tensors if base[name] == "model"]
    parts = [name for name in tensors if _PART.sub("", base[name]) == "model"]
    others = [name for name in tensors if not base[name].startswith("consolidated")]
    return single or parts or others or tensors


def _whole(selection: Selection, place: str) -> Selection:
    """Return *selection* if each of its parts is there."""
    for name in selection.weights:
        if part := _PART.search(name.rpartition(".")[0]):
            count = int(part[2])
            if len(selection.weights) < count:
                raise EmptyRepo(
                    f"{place} has {len(selection.weights)} of the {count} parts of {name!r}"
                )
    return selection
