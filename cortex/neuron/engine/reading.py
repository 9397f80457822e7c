"""
How far the reading of a checkpoint's weights is, in bytes; and its weights one by one.

transformers goes through them with a progress bar, which it lets others make.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from transformers import modeling_gguf_pytorch_utils as gguf_weights
from transformers.utils import logging

from cortex.errors import RepoFetchFailed

BAR = "Loading weights"  # what transformers calls it
STEPS = 200  # reports of a load, at most about so many
Tell = Callable[[int, int], None]
T = TypeVar("T")


@contextmanager
def watched(path: Path, tell: Tell) -> Iterator[None]:
    """
    Have *tell* called with the bytes read and those of all, while transformers loads *path*.

    A GGUF file's weights are read when they are expanded; what transformers does with them then
    takes no time to speak of.
    """
    sizes = {} if path.is_file() else sizes_in(path)

    def bar(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not sizes or kwargs.get("desc") != BAR:
            return factory(*args, **kwargs)
        weights = list(args[0])
        return counted(weights, shares([name for name, _ in weights], sizes), tell)

    def expanding(tensors: Sequence[Any], **_: object) -> Iterator[Any]:
        return counted(tensors, [tensor.n_bytes for tensor in tensors], tell)

    before, gguf_weights.tqdm = gguf_weights.tqdm, expanding
    hook = logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        gguf_weights.tqdm = before
        logging.set_tqdm_hook(hook)


def sizes_in(folder: Path) -> dict[str, int]:
    """Return the bytes of each tensor in a folder's safetensors, by name; none of a damaged one."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as read:
            length = int.from_bytes(read.read(8), "little")
            if (
                not 0 < length < file.stat().st_size
            ):  # transformers will say so, if it needs the file
                continue
            header = json.loads(read.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                sizes[name] = end - begin
    return sizes


def slices_in(folder: Path) -> Iterator[tuple[str, Any]]:
    """
    Yield the weights of a folder of safetensors, as slices that are read when they are indexed.

    Raises:
        RepoFetchFailed: A file is not there.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    with suppress(FileNotFoundError):
        names = sorted({*json.loads(index.read_text("utf-8"))["weight_map"].values()})
    for name in names:
        if not (folder / name).is_file():
            raise RepoFetchFailed(f"{folder} has no {name}: its weights cannot be read one by one")
        file: Any = safe_open(folder / name, framework="pt")
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            yield key, file.get_slice(key)


def shares(names: Sequence[str], sizes: dict[str, int]) -> list[int]:
    """Return the bytes of each of *names*; what has another name in the files gets like shares."""
    known = sum(sizes.get(name, 0) for name in names)
    others = sum(name not in sizes for name in names)
    rest = (sum(sizes.values()) - known) // max(others, 1)
    return [sizes.get(name, rest) for name in names]


def counted(items: Iterable[T], sizes: Sequence[int], tell: Tell) -> Iterator[T]:
    """Yield *items*, and tell of the bytes of those that are through."""
    done, told, total = 0, 0, sum(sizes)
    tell(0, total)
    for item, size in zip(items, sizes, strict=True):
        yield item
        done += size
        if (done - told) * STEPS >= total or done == total:
            told = done
            tell(done, total)
