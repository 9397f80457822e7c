"""The weights that are kept on this host: a folder a model, its size, its use."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

import attrs

from cortex.cli.weights.folders import Folders
from cortex.sources.hold import Hold

Use = Literal["free", "loaded", "downloading", "open"]
HUB_PREFIX = "models--"
UNFINISHED = ".incomplete"
PRUNED = ".pruned-"  # what a deletion that broke off left


@attrs.frozen(kw_only=True)
class Kept:
    """
    What is kept of one model.

    Attributes:
        model: ``owner/name`` of a hub's, ``name==version`` of a wheel's.
        partial_bytes: Of `size_bytes`, files whose download broke off or goes on.
        last_used: Unix seconds, as the file system has it: a load, a read, or the download.
        use: ``open`` is a file of it, by any program.
    """

    model: str
    source: str
    path: Path
    size_bytes: int
    partial_bytes: int
    last_used: float
    use: Use
    locks: Path | None = attrs.field(default=None, repr=False)


def kept(folders: Folders) -> list[Kept]:
    """Return everything that is kept, the largest first."""
    opened = _open_files()
    found = [*_of_hub(folders.hub, opened), *_of_packages(folders.packages, opened)]
    return sorted(found, key=lambda each: (-each.size_bytes, each.model))


def _of_hub(root: Path, opened: frozenset[str]) -> Iterator[Kept]:
    for folder in _folders(root):
        if folder.name.startswith(HUB_PREFIX):
            model = folder.name.removeprefix(HUB_PREFIX).replace("--", "/")
            yield _kept(model, "hf", folder, opened, root / ".locks" / folder.name)
        elif folder.name.startswith(PRUNED):
            yield _kept(f"(unfinished) {folder.name}", "hf", folder, opened, None)


def _of_packages(root: Path, opened: frozenset[str]) -> Iterator[Kept]:
    for folder in _folders(root):
        if folder.name.startswith("."):  # on its way, or what a download that was killed left
            yield _kept(f"(unfinished) {folder.name}", "package", folder, opened, None)
            continue
        name, _, version = folder.name.rpartition("-")
        yield _kept(f"{name}=={version}", "package", folder, opened, None)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(
            entry for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink()
        )
    except OSError:
        return []


def _kept(
    model: str, source: str, folder: Path, opened: frozenset[str], locks: Path | None
) -> Kept:
    size, partial, last = 0, 0, 0.0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if path.is_symlink():
                continue
            stat = _stat(path)
            size += stat.st_size
            partial += stat.st_size if name.endswith(UNFINISHED) else 0
            last = max(last, stat.st_atime, stat.st_mtime)
    unfinished = folder.name.startswith(".")
    use: Use = "free"
    if locks is not None and _is_downloading(locks):
        use = "downloading"
    elif is_held(folder):
        use = "downloading" if unfinished else "loaded"
    elif any(name.startswith(f"{folder.resolve()}{os.sep}") for name in opened):
        use = "open"
    return Kept(
        model=model,
        source=source,
        path=folder,
        size_bytes=size,
        partial_bytes=size if unfinished else partial,
        last_used=last,
        use=use,
        locks=locks,
    )


def is_held(folder: Path) -> bool:
    """Tell whether a neuron, or a download, holds a folder or one inside; so if nobody can tell."""
    try:
        with ExitStack() as stack:
            for place in folders_in(folder):
                stack.enter_context(Hold(place, alone=True))
    except OSError:
        return True
    return False


def folders_in(folder: Path) -> list[Path]:
    """Return a folder and all inside."""
    return [Path(place) for place, _, _ in os.walk(folder)]


def _is_downloading(locks: Path) -> bool:
    """Tell whether a program holds a lock of a hub's repository, as huggingface_hub's do too."""
    for lock in locks.glob("*.lock") if locks.is_dir() else ():
        try:
            with lock.open("a") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _open_files() -> frozenset[str]:
    """Return the files programs have open or mapped, as far as we may look."""
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # somebody else's, or gone
            maps = (process / "maps").read_text("utf-8", "replace").splitlines()
            found.update(line[line.index("/") :] for line in maps if "/" in line)
            for handle in (process / "fd").iterdir():
                with suppress(OSError):  # closed
                    found.add(str(handle.readlink()))
    return frozenset(found)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:  # a download has just given it its name
        return os.stat_result((0,) * 10)
